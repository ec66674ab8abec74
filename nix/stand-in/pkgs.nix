# Packages that can be named and not built, and the functions that make some.
{
  lib,
  system,
  nixosConfig,
}:
let
  inherit (builtins) deepSeq filter attrNames;

  fake =
    arguments@{ name, ... }:
    derivation {
      inherit name system;
      builder = "/nothing/is/built/here";
    }
    // arguments;

  # A function that takes these arguments and no other.
  strict =
    function: known: arguments:
    let
      unknown = filter (key: !(builtins.elem key known)) (attrNames arguments);
    in
    if unknown != [ ] then throw "${function} has no ${builtins.head unknown}" else arguments;

  # An evaluated system as a package: nothing of it is left unasked, and its assertions hold.
  whole =
    config:
    let
      failed = filter (one: !one.assertion) config.assertions;
      asked = removeAttrs config [ "assertions" ];
    in
    if failed != [ ] then
      throw "failed assertion: ${(builtins.head failed).message}"
    else
      deepSeq asked (fake {
        name = "nixos-system";
      });

  callPackage =
    from: file: arguments:
    let
      function = import file;
    in
    function (builtins.intersectAttrs (builtins.functionArgs function) from // arguments);

  set = kind: {
    callPackage = callPackage (set kind);
    inherit lib;

    rustPlatform.buildRustPackage =
      arguments:
      let
        checked = strict "buildRustPackage" [
          "pname"
          "version"
          "src"
          "cargoLock"
          "cargoBuildFlags"
          "nativeBuildInputs"
          "buildPhase"
          "doCheck"
          "installPhase"
          "postInstall"
          "meta"
        ] arguments;
      in
      assert builtins.pathExists checked.cargoLock.lockFile;
      deepSeq (removeAttrs checked [ "src" ]) (fake {
        name = "${checked.pname}${kind}-${checked.version}";
        inherit (checked) meta;
        # What runs it, where that is none of nixpkgs' own.
        buildPhase = checked.buildPhase or "";
        postInstall = checked.postInstall or "";
        src = "${checked.src}";
      });
  };

  named = lib.genAttrs [
    "cargo"
    "clippy"
    "coreutils"
    "deadnix"
    "e2fsprogs"
    "lsof"
    "nixfmt"
    "psmisc"
    "qemu"
    "rustc"
    "rustfmt"
    "squashfsTools"
    "systemd"
  ] (name: fake { inherit name; });
in
let
  all =
    set ""
    // named
    // {
      callPackage = callPackage all;
      inherit system whole;
      closureInfo =
        arguments:
        deepSeq (strict "closureInfo" [ "rootPaths" ] arguments) (fake {
          name = "closure-info";
        });
      linuxPackages.kernel = fake {
        name = "linux";
        modDirVersion = "6.0.0";
      };
      pkgsStatic = set "-static-x86_64-unknown-linux-musl";

      linkFarm =
        name: entries:
        deepSeq
          (map (entry: "${entry.name} ${entry.path}") (
            map (strict "linkFarm" [
              "name"
              "path"
            ]) entries
          ))
          (fake {
            inherit name;
            parts = map (entry: entry.name) entries;
          });
      mkShell =
        arguments:
        deepSeq (strict "mkShell" [ "packages" ] arguments) (fake {
          name = "shell";
        });
      runCommand =
        name: attributes: script:
        deepSeq
          [
            attributes
            script
          ]
          (fake {
            inherit name script;
          });
      writeText =
        name: text:
        deepSeq text (fake {
          inherit name text;
        });
      writeShellScript =
        name: text:
        deepSeq text (fake {
          inherit name text;
        });
      writeShellApplication =
        arguments:
        let
          checked = strict "writeShellApplication" [ "name" "runtimeInputs" "text" ] arguments;
        in
        deepSeq checked (fake {
          inherit (checked) name text;
          meta.mainProgram = checked.name;
        });

      # Each machine is evaluated as a whole system.
      testers.runNixOSTest =
        arguments:
        let
          test = strict "runNixOSTest" [ "name" "nodes" "testScript" ] arguments;
          nodes = builtins.mapAttrs (_: node: (nixosConfig [ node ]).config) test.nodes;
        in
        deepSeq (builtins.mapAttrs (_: node: "${whole node}") nodes) (
          fake { name = "vm-test-run-${test.name}"; }
          // {
            inherit nodes;
            driver = fake { name = "nixos-test-driver"; } // {
              inherit (test) testScript;
            };
          }
        );
    };
in
all
