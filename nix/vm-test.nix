# The cycle of a server under NixOS' own test driver: started, reset, started again. srcds cannot be had: a script that sleeps
# is in its place.
{ self }:
{
  name = "left4me";

  nodes.machine =
    { pkgs, ... }:
    {
      imports = [ self.nixosModules.left4me ];

      services.left4me = {
        enable = true;
        instances."3" = {
          layers = [ "maps" ];
          port = 27016;
        };
      };

      systemd.tmpfiles.rules = [
        "d /var/lib/left4me/overlays/maps 0755 root root -"
        "L+ /var/lib/left4me/installation/srcds_run - - - - ${pkgs.writeShellScript "srcds_run" ''
          echo written >server.log
          exec ${pkgs.coreutils}/bin/sleep infinity
        ''}"
      ];
    };

  testScript = ''
    server, overlay = "left4me-server@3.service", "left4me-overlay@3.service"
    runtime = "/var/lib/left4me/runtime/3"
    machine.wait_for_unit(server)
    machine.succeed(f"systemctl cat {server} {overlay}")

    for cycle in range(5):
        with subtest(f"cycle {cycle}"):
            machine.succeed("l4d2ctl start 3")
            machine.succeed(f"mountpoint {runtime}/merged")
            machine.wait_until_succeeds(f"test -e {runtime}/upper/server.log")
            machine.succeed("l4d2ctl reset --yes 3")
            machine.fail(f"test -e {runtime}")
            machine.fail(f"grep {runtime}/merged /proc/1/mountinfo")
            machine.require_unit_state(overlay, "inactive")

    machine.succeed("l4d2ctl doctor 3")
  '';
}
