# What NixOS gets of a list of everything that a host gets, deploy/manifest.toml or, of the operator's page, web/manifest.toml: the
# package's files at their places in the store, and the files that the module reads.
{
  lib,
  name ? "left4me",
}:
let
  list = if name == "left4me" then "deploy/manifest.toml" else "web/manifest.toml";
  manifest = builtins.fromTOML (builtins.readFile (../. + "/${list}"));

  # Below the package's directory. What is null the module has, in NixOS' own way.
  places = {
    bin = "bin";
    libexec = "libexec";
    man = "share/man";
    bash = "share/bash-completion/completions";
    fish = "share/fish/vendor_completions.d";
    zsh = "share/zsh/site-functions";
    doc = "share/doc/${name}";
    units = null;
    sysusers = null;
    tmpfiles = null;
  };

  # "{bin}/l4d2ctl": the place and what is below it.
  parse =
    key:
    let
      parts = builtins.match "\\{([a-z]+)}/(.*)" key;
      place = lib.head parts;
    in
    if parts == null || !(places ? ${place}) then
      throw "${list}: ${key}: NixOS has no such place; say in nix/tree.nix where it belongs"
    else
      {
        inherit place;
        below = lib.elemAt parts 1;
        here = places.${place};
        archive = "${manifest.places.${place}.archive}/${lib.elemAt parts 1}";
      };

  file =
    key: entry:
    let
      at = parse key;
      source = ../. + "/${entry.from or "deploy/files${at.archive}"}";
    in
    if builtins.pathExists source then
      at
      // {
        inherit source;
        deb = entry.only or "" == "deb";
      }
    else
      throw "${list}: ${key}: no such file: ${toString source}";

  files = lib.filter (one: !one.deb) (lib.mapAttrsToList file manifest.files);
  programs = lib.mapAttrsToList (key: entry: parse key // entry) manifest.programs;

  at = place: lib.filter (one: one.place == place) files;
  lines =
    place:
    lib.filter (line: line != "" && !(lib.hasPrefix "#" line)) (
      lib.concatMap (one: lib.splitString "\n" (builtins.readFile one.source)) (at place)
    );

  group =
    line:
    let
      name = builtins.match "g +([a-z0-9-]+) +-" line;
    in
    if name == null then throw "sysusers.d: nix/tree.nix knows groups only: ${line}" else lib.head name;

  account =
    line:
    let
      parts = builtins.match "u +([a-z0-9-]+) +- +\"([^\"]*)\"" line;
    in
    if parts == null then
      throw "sysusers.d: nix/tree.nix knows users with a description only: ${line}"
    else
      lib.nameValuePair (lib.head parts) (lib.elemAt parts 1);
in
{
  # The units' shipped text, by their names.
  units = lib.listToAttrs (
    map (one: lib.nameValuePair one.below (builtins.readFile one.source)) (at "units")
  );

  # Where a Debian host has each program, and where it is below the package.
  programs = lib.listToAttrs (
    map (one: lib.nameValuePair one.archive "${one.here}/${one.below}") programs
  );

  # Lines of tmpfiles.d(5).
  directories = lines "tmpfiles";

  # What sysusers.d(5) declares: groups and no user, of the page a user and no group of another name.
  groups = map group (lines "sysusers");
  users = lib.listToAttrs (map account (lines "sysusers"));

  # The shell that puts everything in its place, after cargo's programs are in $out/bin. In what names a program's path it is
  # the one in the store.
  install =
    lib.concatMapStrings (
      one:
      let
        from = "$out/bin/${one.program}";
        to = "$out/${one.here}/${one.below}";
      in
      "test -x ${from}\n" + lib.optionalString (from != to) "install -D ${from} ${to}\nrm ${from}\n"
    ) programs
    + lib.concatMapStrings (one: ''
      install -D -m 0644 ${one.source} $out/${one.here}/${one.below}
    '') (lib.filter (one: one.here != null) files)
    + ''
      substituteInPlace $out/share/man/man*/* --replace-quiet /usr/local/libexec/ $out/libexec/
    '';
}
