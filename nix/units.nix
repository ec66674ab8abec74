# The text of the units, or of the operator's page's: what a Debian host gets, byte for byte, but for the programs that NixOS has in
# its store.
{
  lib,
  package,
  systemd,
  name ? "left4me",
}:
let
  tree = import ./tree.nix { inherit lib name; };
  shipped = tree.units;

  # Where a Debian host has a program, and where NixOS has it.
  programs = lib.optionalAttrs (name == "left4me") {
    "/usr/bin/systemd-sysusers" = "${systemd}/bin/systemd-sysusers";
  }
  // lib.filterAttrs (path: _: isNamed path) (
    lib.mapAttrs (_: below: "${package}/${below}") tree.programs
  );

  isNamed = path: lib.any (lib.hasInfix path) (lib.attrValues shipped);

  here = builtins.replaceStrings (lib.attrNames programs) (lib.attrValues programs);
  debians = builtins.replaceStrings (lib.attrValues programs) (lib.attrNames programs);

  # A path that NixOS does not have, in a line that is no comment.
  isForeign =
    line:
    !(lib.hasPrefix "#" line)
    && builtins.match ".*[^A-Za-z0-9._+-]/(usr|bin|sbin|lib|lib64|opt)/.*" line != null;

  render =
    name: theirs:
    let
      text = here theirs;
      foreign = lib.filter isForeign (lib.splitString "\n" text);
    in
    if foreign != [ ] then
      throw "${name} names a path that NixOS does not have; add it to `programs` in nix/units.nix: ${lib.head foreign}"
    else if debians text != theirs then
      throw "${name} is not the shipped unit but for the paths of programs"
    else
      text;

  all = lib.mapAttrs render shipped;
  unused = lib.filter (path: !(isNamed path)) (lib.attrNames programs);
in
# A unit's own trouble is told first.
if builtins.deepSeq all unused != [ ] then
  throw "no unit names ${lib.head unused}: take it out of `programs` in nix/units.nix"
else
  all
