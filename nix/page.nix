# The operator's page, `services.left4me.page`: off until it is enabled. docs/nixos.md is for its users.
{
  config,
  lib,
  ...
}:
let
  inherit (lib) mkOption types;
  cfg = config.services.left4me.page;
  tree = import ./tree.nix {
    inherit lib;
    name = user;
  };
  user = "left4me-web";

  # What an option adds to a unit: a section once more, behind the shipped text. A drop-in would be of the same name here.
  added = {
    "left4me-web.socket" = lib.optionalString (cfg.proxyGroup != null) ''

      [Socket]
      SocketGroup=${cfg.proxyGroup}
      SocketMode=0660
    '';
    "left4me-web.service" = lib.optionalString (cfg.hostName != null) ''

      [Service]
      ExecStart=
      ExecStart=${cfg.package}/libexec/left4me/left4me-web --name ${cfg.hostName} /var/lib/left4me-web/jobs.sqlite
    '';
  };
in
{
  options.services.left4me.page = {
    enable = lib.mkEnableOption "the operator's page, and the broker that does for it what needs root";
    package = mkOption {
      type = types.package;
      description = "The programs left4me-web and left4me-broker.";
    };
    hostName = mkOption {
      type = types.nullOr (types.strMatching "[a-z0-9]([a-z0-9.-]*[a-z0-9])?");
      default = null;
      example = "panel.example.org";
      description = "The name by which a proxy's users know the page: `--name`. Unless it is set: localhost alone.";
    };
    proxyGroup = mkOption {
      type = types.nullOr (types.strMatching "[a-z_][a-z0-9_-]*");
      default = null;
      example = "nginx";
      description = "The group that may connect to the page's socket, a proxy's: `SocketGroup=`. Unless it is set: root alone.";
    };
    unitText = mkOption {
      type = types.attrsOf types.str;
      readOnly = true;
      internal = true;
      description = "The shipped text of its four units, by their names.";
    };
  };

  config = lib.mkMerge [
    {
      services.left4me.page.unitText = import ./units.nix {
        inherit lib;
        inherit (cfg) package;
        systemd = config.systemd.package;
        name = user;
      };
    }
    (lib.mkIf cfg.enable {
      assertions = [
        {
          assertion = config.services.left4me.enable;
          message = "services.left4me.page: it is of no use without services.left4me.enable";
        }
      ];

      # `left4me-web passwd` is at one path, whatever the package's is.
      environment.systemPackages = [ cfg.package ];
      environment.pathsToLink = [ "/libexec/left4me" ];

      systemd.units = lib.mapAttrs (name: text: { text = text + added.${name} or ""; }) cfg.unitText;

      # NixOS does not read [Install].
      systemd.targets.sockets.wants = [
        "left4me-broker.socket"
        "left4me-web.socket"
      ];

      users.users = lib.mapAttrs (_: description: {
        inherit description;
        isSystemUser = true;
        group = user;
      }) tree.users;
      users.groups = lib.mapAttrs (_: _: { }) tree.users;
    })
  ];
}
