# A program of this workspace, or some of them. `static` is what a machine of any distribution can run.
{
  lib,
  rustPlatform,
  # The package's name, and the cargo packages that it is made of.
  name,
  crates,
  # Whether it has all that a host gets, at its places, and not programs alone.
  deployed ? false,
}:
let
  inherit (lib) fileset;
  manifest = lib.importTOML ../Cargo.toml;
in
rustPlatform.buildRustPackage {
  pname = name;
  inherit (manifest.workspace.package) version;

  src = fileset.toSource {
    root = ../.;
    fileset = fileset.unions (
      [
        ../Cargo.toml
        ../Cargo.lock
        ../deploy
        ../docs/report.md
      ]
      # A member that is missing is an error of cargo's.
      ++ map (member: ../. + "/${member}") manifest.workspace.members
    );
  };
  cargoLock.lockFile = ../Cargo.lock;
  cargoBuildFlags = lib.concatMap (crate: [
    "--package"
    crate
  ]) crates;

  # The tests want namespaces, a proc of their own and machines: `cargo xtask check`.
  doCheck = false;

  postInstall = lib.optionalString deployed (import ./tree.nix { inherit lib name; }).install;

  meta = {
    description = "Left 4 Dead 2 servers as systemd units that run from an overlay";
    license = lib.licenses.mit;
    platforms = [ "x86_64-linux" ];
  };
}
