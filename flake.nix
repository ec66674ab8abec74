{
  description = "Left 4 Dead 2 servers as systemd units that run from an overlay, and the harness that tests them";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      # srcds is a program for x86 only.
      system = "x86_64-linux";
      pkgs = nixpkgs.legacyPackages.${system};
      own = self.packages.${system};
      program = from: arguments: from.callPackage ./nix/package.nix arguments;
      cargoCheck = pkgs.callPackage ./nix/cargo-check.nix;
    in
    {
      packages.${system} = {
        default = own.left4me;
        left4me = program pkgs.pkgsStatic {
          name = "left4me";
          crates = [
            "left4me-helper"
            "left4me-ctl"
            "holders"
          ];
          deployed = true;
        };
        # The operator's page, and its broker.
        left4me-web = program pkgs.pkgsStatic {
          name = "left4me-web";
          crates = [
            "left4me-broker"
            "left4me-web"
          ];
          deployed = true;
        };
        holders = program pkgs.pkgsStatic {
          name = "holders";
          crates = [ "holders" ];
        };
        xtask = program pkgs {
          name = "xtask";
          crates = [ "xtask" ];
        };
        # What the harness puts into a machine.
        guest-programs = program pkgs.pkgsStatic {
          name = "guest-programs";
          crates = [
            "left4me-helper"
            "left4me-ctl"
            "vm-agent"
          ];
        };
        # A machine for the harness: kernel, modules, root.
        guest = pkgs.callPackage ./nix/guest-image.nix { inherit (self.nixosConfigurations.guest) config; };
      };

      nixosConfigurations.guest = lib.nixosSystem {
        inherit system;
        modules = [
          self.nixosModules.left4me
          ./nix/guest.nix
        ];
      };

      nixosModules = {
        default = self.nixosModules.left4me;
        left4me = {
          imports = [
            ./nix/module.nix
            ./nix/page.nix
          ];
          services.left4me = {
            package = lib.mkDefault own.left4me;
            page.package = lib.mkDefault own.left4me-web;
          };
        };
      };

      checks.${system} = {
        inherit (own)
          guest-programs
          holders
          left4me
          left4me-web
          xtask
          ;

        clippy = cargoCheck {
          name = "clippy";
          command = "cargo clippy --offline --workspace --all-targets --all-features -- --deny warnings";
          tools = [ pkgs.clippy ];
        };
        # Not those in files of their own: they want namespaces, a proc of their own and machines.
        unit-tests = cargoCheck {
          name = "unit-tests";
          command = "INSTA_UPDATE=no cargo test --offline --workspace --lib --bins";
        };

        # One machine, and five cycles of a server on it.
        vm = pkgs.testers.runNixOSTest (import ./nix/vm-test.nix { inherit self; });

        # The same by our own harness, which looks closer.
        harness = pkgs.callPackage ./nix/harness-test.nix {
          inherit (own) guest xtask;
          programs = own.guest-programs;
        };

        # nix/units.nix has compared them with the shipped ones by then.
        units = pkgs.linkFarm "left4me-units" (
          lib.mapAttrsToList
            (name: text: {
              # A name in the store has no @.
              inherit name;
              path = pkgs.writeText (builtins.replaceStrings [ "@" ] [ "-" ] name) text;
            })
            (
              import ./nix/units.nix {
                inherit lib;
                inherit (pkgs) systemd;
                package = own.left4me;
              }
            )
        );

        format =
          pkgs.runCommand "left4me-format"
            {
              nativeBuildInputs = [
                pkgs.cargo
                pkgs.deadnix
                pkgs.nixfmt
                pkgs.rustfmt
              ];
            }
            ''
              CARGO_HOME=$TMPDIR cargo fmt --manifest-path ${./.}/Cargo.toml --all --check
              nixfmt --check ${./flake.nix} $(find ${./nix} -name '*.nix')
              deadnix --fail ${./flake.nix} ${./nix}
              touch $out
            '';
      };

      # To build and to test what boots no machine. A guest image is made by Debian's programs, on Debian.
      devShells.${system}.default = pkgs.mkShell {
        packages = [
          pkgs.cargo
          pkgs.clippy
          pkgs.deadnix
          pkgs.nixfmt
          pkgs.qemu
          pkgs.rustc
          pkgs.rustfmt
          pkgs.squashfsTools
        ];
      };

      formatter.${system} = pkgs.nixfmt;

      # Of the checkout that it is run in: the harness builds from it what a guest gets, with the host's linker and static libc.
      apps.${system}.vm-test = {
        type = "app";
        program = lib.getExe (
          pkgs.writeShellApplication {
            name = "vm-test";
            runtimeInputs = [
              pkgs.cargo
              pkgs.qemu
              pkgs.rustc
            ];
            text = ''exec cargo xtask vm-test "$@"'';
          }
        );
      };
    };
}
