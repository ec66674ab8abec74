# What the test looks at: of the flake in `root`, with the stand-in for nixpkgs, the machine that the module `host` describes.
{ root, host }:
let
  flake = import (/. + root + "/flake.nix");
  nixpkgs = (import (/. + root + "/nix/stand-in/flake.nix")).outputs { self = { }; };
  self = flake.outputs { inherit self nixpkgs; };
  system = "x86_64-linux";
  own = self.packages.${system};
  machine = nixpkgs.lib.nixosSystem {
    inherit system;
    modules = [
      self.nixosModules.left4me
      (/. + host)
    ];
  };
  inherit (machine.config) systemd users networking;
in
# Its value is asked for first: what the whole system refuses is refused here.
builtins.seq machine.config.system.build.toplevel.outPath {
  units = builtins.mapAttrs (_: unit: { inherit (unit) overrideStrategy text; }) systemd.units;
  inherit (systemd.targets.multi-user) wants;
  sockets = systemd.targets.sockets.wants or [ ];
  inherit (systemd.tmpfiles) rules;
  ports = networking.firewall.allowedUDPPorts;
  accounts = builtins.mapAttrs (_: user: { inherit (user) uid group extraGroups; }) users.users;
  groups = builtins.mapAttrs (_: group: group.gid) users.groups;
  programs = builtins.mapAttrs (_: app: app.program) self.apps.${system};
  install = own.left4me.postInstall;
  installPage = own.left4me-web.postInstall;
  script = self.checks.${system}.vm.driver.testScript;
  # The harness reads these of a guest.
  guest = own.guest.parts;
  checks = builtins.mapAttrs (_: check: check.buildPhase or check.script or "") self.checks.${system};
  outputs = builtins.mapAttrs (_: of: builtins.attrNames (of.${system} or of)) (
    removeAttrs self [ "formatter" ]
  );
}
