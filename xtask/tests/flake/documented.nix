# A host's own flake, as the document has it, with the stand-in for nixpkgs: the servers that its machine starts by itself.
{ root, host }:
let
  flake = import (/. + root + "/flake.nix");
  nixpkgs = (import (/. + root + "/nix/stand-in/flake.nix")).outputs { self = { }; };
  self = flake.outputs { inherit self nixpkgs; };
  hosts = (import (/. + host + "/flake.nix")).outputs {
    inherit nixpkgs;
    self = { };
    left4me = self;
  };
  inherit (hosts.nixosConfigurations.games) config;
in
builtins.seq config.system.build.toplevel.outPath config.systemd.targets.multi-user.wants
