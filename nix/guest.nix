# A machine for the harness, as a module: no disk of its own, no boot loader, no terminal. The harness brings kernel and initramfs,
# lays a tmpfs over the root, and runs the root's `/init`.
{ modulesPath, pkgs, ... }:
{
  imports = [ "${modulesPath}/profiles/minimal.nix" ];

  boot = {
    # Ours is in its place.
    initrd.enable = false;
    loader.grub.enable = false;
    # What the harness reads it through, and what a server's overlay lies on.
    kernelModules = [ "overlay" ];
  };
  fileSystems."/" = {
    device = "none";
    fsType = "tmpfs";
  };

  # What scenarios, and people in a shell, use besides what every NixOS has.
  environment.systemPackages = [
    pkgs.e2fsprogs
    pkgs.lsof
    pkgs.psmisc
  ];

  networking = {
    hostName = "guest";
    useDHCP = false;
  };
  services.left4me = {
    enable = true;
    # Those that scenarios start and reset.
    instances = {
      "3".autoStart = false;
      "4" = {
        autoStart = false;
        port = 27016;
      };
      "5" = {
        autoStart = false;
        port = 27017;
      };
    };
  };
  # This system's, of which nothing is kept.
  system.stateVersion = "26.05";
}
