# What stands in for nixpkgs where it cannot be had: README.md says what it proves.
{
  description = "A stand-in for nixpkgs, for evaluation without a network";

  outputs =
    _:
    let
      system = "x86_64-linux";
      lib = import ./lib.nix;
      pkgs = import ./pkgs.nix { inherit lib system nixosConfig; };
      nixosConfig =
        modules:
        lib.evalModules {
          modules = [ ./options.nix ] ++ modules;
          specialArgs = {
            inherit pkgs;
            modulesPath = toString ./modules;
          };
        };
    in
    {
      lib = lib // {
        # Its toplevel asks for every option's value.
        nixosSystem =
          { system, modules }:
          let
            evaluated = nixosConfig modules;
          in
          assert system == pkgs.system;
          {
            inherit pkgs;
            inherit (evaluated) options;
            config = evaluated.config // {
              system = evaluated.config.system // {
                build = {
                  inherit (evaluated.config.boot.kernelPackages) kernel;
                  toplevel = pkgs.whole evaluated.config;
                };
              };
            };
          };
      };
      legacyPackages.${system} = pkgs;
    };
}
