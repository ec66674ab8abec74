# The NixOS module: `services.left4me`. docs/nixos.md is for its users.
{
  config,
  lib,
  ...
}:
let
  inherit (lib) mkOption types;
  cfg = config.services.left4me;
  stateDir = "/var/lib/left4me";

  # As helper/src/instance.rs and helper/src/layers.rs have them.
  instanceName = "[a-z0-9][a-z0-9_-]{0,22}";
  layerName = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}";

  limit =
    type: key: default:
    mkOption {
      type = types.nullOr type;
      default = null;
      description = "`${key}=` of the server. Unless it is set: ${default}, as the unit has it.";
    };

  limits = {
    tasksMax = limit types.ints.positive "TasksMax" "512";
    cpuQuota = limit types.str "CPUQuota" "200%";
    memoryMax = limit types.str "MemoryMax" "4G";
    fileSizeMax = limit types.str "LimitFSIZE" "4G";
  };

  sandbox = {
    denyAddresses = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [
        "10.0.0.0/8"
        "192.168.0.0/16"
      ];
      description = "Networks that the server cannot reach, and that cannot reach it: `IPAddressDeny=`.";
    };
    bindOnly = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [
        "udp:27015-27050"
        "tcp:27015-27050"
      ];
      description = "The only ports that the server can listen on: `SocketBindAllow=`. An empty list: any.";
    };
  };

  instance = {
    options = {
      autoStart = mkOption {
        type = types.bool;
        default = true;
        description = "Whether the server starts with the machine.";
      };
      layers = mkOption {
        type = types.listOf (types.strMatching layerName);
        default = [ ];
        example = [
          "competitive"
          "maps"
        ];
        description = "Directories in ${stateDir}/overlays, the topmost first. Below them lies ${stateDir}/installation.";
      };
      ip = mkOption {
        type = line;
        default = "0.0.0.0";
        description = "The address that the server listens on.";
      };
      port = mkOption {
        type = types.port;
        default = 27015;
        description = "The server's port, UDP for the game and TCP for RCON. No two servers have the same.";
      };
      map = mkOption {
        type = line;
        default = "c1m1_hotel";
        description = "The first map.";
      };
      arguments = mkOption {
        type = line;
        default = "";
        example = "+exec server.cfg -tickrate 60";
        description = "More arguments of srcds_run.";
      };
      uid = mkOption {
        type = types.nullOr types.ints.positive;
        default = null;
        description = ''
          The number of the server's user, `left4me-<id>`, and of its group. Unless it is set, NixOS takes one that is free. Set
          it where files outlive the system, on a disk that another installation gets.
        '';
      };
      inherit limits sandbox;
      serviceConfig = mkOption {
        type = types.attrsOf types.str;
        default = { };
        example = {
          IOWeight = "50";
        };
        description = "More settings of the server's `[Service]` section.";
      };
    };
  };

  user = id: "left4me-${id}";

  line = types.strMatching "[^\n]*";

  # In a file of environment variables, systemd.exec(5), EnvironmentFile=.
  quoted = value: "\"${lib.escape [ "\\" "\"" "`" "$" ] value}\"";

  # The argument of a line of tmpfiles.d(5): C escapes, and specifiers.
  argument = builtins.replaceStrings [ "\\" "%" "\n" ] [ "\\\\" "%%" "\\n" ];

  # A file, not a link into the store: the helper follows no link. Written at boot and by `nixos-rebuild switch`.
  file = path: text: "f+ ${path} 0644 root root - ${argument text}";

  instanceFiles = id: instance: [
    (file "${stateDir}/instances/${id}.toml" "overlays = ${builtins.toJSON instance.layers}\n")
    (file "${stateDir}/instances/${id}.env" ''
      L4D2_IP=${quoted instance.ip}
      L4D2_PORT=${quoted (toString instance.port)}
      L4D2_MAP=${quoted instance.map}
      L4D2_ARGS=${quoted instance.arguments}
    '')
  ];

  # Directories and groups are those of a Debian host.
  tree = import ./tree.nix { inherit lib; };

  # `nixos-rebuild switch` restarts a unit whose text changed, as with each update of systemd. Players would be thrown out.
  # switch-to-configuration reads this key of an instance's drop-in too.
  staysUp = "X-RestartIfChanged=false\n";

  # srcds_run is a shell script. The PATH that NixOS' systemd gives by itself has systemd's programs alone.
  findsPrograms = "Environment=PATH=/run/current-system/sw/bin\n";

  setting = key: value: lib.optionalString (value != null) "${key}=${toString value}\n";

  serverDropIn =
    instance:
    "[Service]\n"
    + staysUp
    + findsPrograms
    + setting "TasksMax" instance.limits.tasksMax
    + setting "CPUQuota" instance.limits.cpuQuota
    + setting "MemoryMax" instance.limits.memoryMax
    + setting "LimitFSIZE" instance.limits.fileSizeMax
    + lib.optionalString (instance.sandbox.denyAddresses != [ ]) (
      setting "IPAddressDeny" (lib.concatStringsSep " " instance.sandbox.denyAddresses)
    )
    + lib.optionalString (instance.sandbox.bindOnly != [ ]) (
      setting "SocketBindDeny" "any"
      + lib.concatMapStrings (setting "SocketBindAllow") instance.sandbox.bindOnly
    )
    + lib.concatStrings (lib.mapAttrsToList setting instance.serviceConfig);

  dropIn = text: {
    inherit text;
    overrideStrategy = "asDropin";
  };

  instances = lib.attrNames cfg.instances;
  ports = lib.mapAttrsToList (_: instance: instance.port) cfg.instances;
  twice = lib.filter (port: lib.count (other: other == port) ports > 1) ports;
in
{
  options.services.left4me = {
    enable = lib.mkEnableOption "Left 4 Dead 2 servers, each from an overlay of its own";
    package = mkOption {
      type = types.package;
      description = "The programs left4me-overlay and l4d2ctl.";
    };
    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = "Whether all servers' ports are open, UDP and TCP.";
    };
    instances = mkOption {
      type = types.attrsOf (types.submodule instance);
      default = { };
      description = "The servers by their names: 1 to 23 characters of a-z, 0-9, _ and -, the first a letter or a digit.";
    };
    unitText = mkOption {
      type = types.attrsOf types.str;
      readOnly = true;
      internal = true;
      description = "The text of the two units, by their names.";
    };
  };

  config = lib.mkIf cfg.enable {
    services.left4me.unitText = import ./units.nix {
      inherit lib;
      inherit (cfg) package;
      systemd = config.systemd.package;
    };

    assertions =
      map (id: {
        assertion = builtins.match instanceName id != null;
        message = "services.left4me.instances.\"${id}\": a name has 1 to 23 characters of a-z, 0-9, _ and -, the first a letter or a digit";
      }) instances
      ++ [
        {
          assertion = twice == [ ];
          message = "services.left4me: more than one server has port ${toString (lib.head twice)}";
        }
      ];

    environment.systemPackages = [ cfg.package ];

    # As text: NixOS would write its own of `systemd.services`, with other settings and a PATH.
    systemd.units = lib.mkMerge [
      (lib.mapAttrs (_: text: { inherit text; }) cfg.unitText)
      (lib.mapAttrs' (
        id: instance: lib.nameValuePair "left4me-server@${id}.service" (dropIn (serverDropIn instance))
      ) cfg.instances)
      (lib.mapAttrs' (
        id: _: lib.nameValuePair "left4me-overlay@${id}.service" (dropIn "[Service]\n${staysUp}")
      ) cfg.instances)
    ];

    # NixOS does not read [Install].
    systemd.targets.multi-user.wants = map (id: "left4me-server@${id}.service") (
      lib.filter (id: cfg.instances.${id}.autoStart) instances
    );

    systemd.tmpfiles.rules =
      tree.directories ++ lib.concatLists (lib.mapAttrsToList instanceFiles cfg.instances);

    # The overlay's unit makes them where they are missing. Declared here they are there with `users.mutableUsers = false` too.
    users.users = lib.mapAttrs' (
      id: instance:
      lib.nameValuePair (user id) {
        isSystemUser = true;
        description = "Left 4 Dead 2 server ${id}";
        group = user id;
        extraGroups = [ "left4me" ];
        inherit (instance) uid;
      }
    ) cfg.instances;
    users.groups =
      lib.genAttrs tree.groups (_: { })
      // lib.mapAttrs' (id: instance: lib.nameValuePair (user id) { gid = instance.uid; }) cfg.instances;

    networking.firewall = lib.mkIf cfg.openFirewall {
      allowedUDPPorts = ports;
      allowedTCPPorts = ports;
    };
  };
}
