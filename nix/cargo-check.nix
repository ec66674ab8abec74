# A command of cargo's that succeeds or not, on the whole workspace, with its dependencies at hand and no network.
{
  lib,
  rustPlatform,
  # The check's name, the command, and the programs that it needs beside cargo.
  name,
  command,
  tools ? [ ],
}:
rustPlatform.buildRustPackage {
  pname = "left4me-${name}";
  inherit ((lib.importTOML ../Cargo.toml).workspace.package) version;
  # Lints have settings at the root, and tests read documents.
  src = ../.;
  cargoLock.lockFile = ../Cargo.lock;
  nativeBuildInputs = tools;

  buildPhase = ''
    runHook preBuild
    ${command}
    runHook postBuild
  '';
  doCheck = false;
  installPhase = "touch $out";

  meta.platforms = [ "x86_64-linux" ];
}
