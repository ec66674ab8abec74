# NixOS' profile of this name: no documentation, few programs.
{ }
