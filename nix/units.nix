# The text of the two units: what a Debian host gets, byte for byte, but for the programs that NixOS has in its store.
{
  lib,
  package,
  systemd,
}:
let
  directory = ../deploy/files/usr/local/lib/systemd/system;

  # Where a Debian host has a program, and where NixOS has it.
  programs = {
    "/usr/local/libexec/left4me/left4me-overlay" = "${package}/libexec/left4me/left4me-overlay";
    "/usr/bin/systemd-sysusers" = "${systemd}/bin/systemd-sysusers";
  };

  # By its name as a string: a path in Nix cannot have an @.
  shipped = name: builtins.readFile (directory + "/${name}");

  here = builtins.replaceStrings (lib.attrNames programs) (lib.attrValues programs);
  debians = builtins.replaceStrings (lib.attrValues programs) (lib.attrNames programs);

  # A path that NixOS does not have, in a line that is no comment.
  isForeign =
    line:
    !(lib.hasPrefix "#" line)
    && builtins.match ".*[^A-Za-z0-9._+-]/(usr|bin|sbin|lib|lib64|opt)/.*" line != null;

  render =
    name:
    let
      text = here (shipped name);
      foreign = lib.filter isForeign (lib.splitString "\n" text);
    in
    if foreign != [ ] then
      throw "${name} names a path that NixOS does not have; add it to `programs` in nix/units.nix: ${lib.head foreign}"
    else if debians text != shipped name then
      throw "${name} is not the shipped unit but for the paths of programs"
    else
      text;

  all = lib.genAttrs [ "left4me-server@.service" "left4me-overlay@.service" ] render;
  unused = lib.filter (
    path: !(lib.any (name: lib.hasInfix path (shipped name)) (lib.attrNames all))
  ) (lib.attrNames programs);
in
# A unit's own trouble is told first.
if builtins.deepSeq all unused != [ ] then
  throw "no unit names ${lib.head unused}: take it out of `programs` in nix/units.nix"
else
  all
