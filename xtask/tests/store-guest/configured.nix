# What NixOS makes of the host that nix/guest.nix describes: with the stand-in for nixpkgs, and with packages at these paths.
{
  root,
  left4me,
  systemd,
}:
let
  at = path: /. + root + path;
  flake = import (at "/flake.nix");
  nixpkgs = (import (at "/nix/stand-in/flake.nix")).outputs { self = { }; };
  self = flake.outputs { inherit self nixpkgs; };
  package = path: {
    type = "derivation";
    name = baseNameOf path;
    outPath = path;
  };
  machine = nixpkgs.lib.nixosSystem {
    system = "x86_64-linux";
    modules = [
      self.nixosModules.left4me
      (at "/nix/guest.nix")
      {
        services.left4me.package = package left4me;
        systemd.package = package systemd;
      }
    ];
  };
  inherit (machine) config;
in
{
  units = builtins.mapAttrs (_: unit: { inherit (unit) overrideStrategy text; }) config.systemd.units;
  inherit (config.systemd.tmpfiles) rules;
  groups = builtins.attrNames config.users.groups;
  users = builtins.mapAttrs (_: user: { inherit (user) group extraGroups; }) config.users.users;
}
