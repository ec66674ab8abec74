# What `cargo xtask vm-test --image nixos --guest ..` takes, of an evaluated NixOS: by the root's `/init` it starts.
{
  closureInfo,
  linkFarm,
  runCommand,
  squashfsTools,
  writeText,
  config,
}:
let
  inherit (config.system) build;
  inherit (config.boot.kernelPackages) kernel;

  root =
    runCommand "left4me-guest-root"
      {
        nativeBuildInputs = [ squashfsTools ];
        closure = closureInfo { rootPaths = [ build.toplevel ]; };
      }
      ''
        mkdir -p root/nix/store root/dev root/etc root/proc root/root root/run root/sys root/tmp root/var
        xargs cp -a --target-directory root/nix/store <$closure/store-paths
        ln -s ${build.toplevel}/init root/init
        mksquashfs root $out -all-root -no-progress -no-compression
      '';
in
linkFarm "left4me-guest" [
  {
    name = "kernel";
    path = "${build.kernel}/${config.system.boot.loader.kernelFile}";
  }
  {
    name = "modules";
    path = "${config.system.modulesTree}/lib/modules/${kernel.modDirVersion}";
  }
  {
    name = "root.squashfs";
    path = "${root}";
  }
  {
    name = "name";
    path = writeText "left4me-guest-name" "nixos\n";
  }
]
