# The options of NixOS that this flake sets, with their types as of nixos-26.05's documentation. One that is not here does not
# exist: who sets another one looks it up, and adds it.
{ lib, pkgs, ... }:
let
  inherit (lib) mkOption types;
  of = type: default: mkOption { inherit type default; };
  strings = of (types.listOf types.str) [ ];
  submodules = options: of (types.attrsOf (types.submodule { inherit options; })) { };
in
{
  options = {
    assertions = of (types.listOf (
      types.submodule {
        options = {
          assertion = mkOption { type = types.bool; };
          message = mkOption { type = types.str; };
        };
      }
    )) [ ];
    boot = {
      initrd.enable = of types.bool true;
      kernelModules = strings;
      kernelPackages = of types.raw pkgs.linuxPackages;
      loader.grub.enable = of types.bool true;
    };
    environment = {
      pathsToLink = strings;
      systemPackages = of (types.listOf types.package) [ ];
    };
    fileSystems = submodules {
      device = of (types.nullOr types.str) null;
      fsType = mkOption { type = types.str; };
    };
    networking = {
      firewall = {
        allowedTCPPorts = of (types.listOf types.port) [ ];
        allowedUDPPorts = of (types.listOf types.port) [ ];
      };
      hostName = of types.str "nixos";
      useDHCP = of types.bool true;
    };
    system = {
      boot.loader.kernelFile = of types.str "bzImage";
      modulesTree = of types.package pkgs.linuxPackages.kernel;
      stateVersion = of types.str "26.05";
    };
    systemd = {
      package = of types.package pkgs.systemd;
      units = submodules {
        enable = of types.bool true;
        overrideStrategy = of (types.enum [
          "asDropinIfExists"
          "asDropin"
        ]) "asDropinIfExists";
        text = of (types.nullOr types.str) null;
        wantedBy = strings;
      };
      targets = submodules { wants = strings; };
      tmpfiles.rules = strings;
    };
    users = {
      groups = submodules {
        gid = of (types.nullOr types.int) null;
        members = strings;
      };
      users = submodules {
        description = of types.str "";
        extraGroups = strings;
        group = of types.str "";
        isNormalUser = of types.bool false;
        isSystemUser = of types.bool false;
        uid = of (types.nullOr types.int) null;
      };
    };
    # Of a test's machine.
    virtualisation.memorySize = of types.ints.positive 1024;
  };
}
