# Three servers, with one of every option.
{
  services.left4me = {
    enable = true;
    openFirewall = true;
    instances = {
      "3" = {
        layers = [
          "maps"
          "a.1"
        ];
      };
      eu-1 = {
        port = 27016;
        arguments = "+hostname \"50% off $x \\ `\" ";
        uid = 801;
        limits = {
          tasksMax = 1024;
          cpuQuota = "50%";
          memoryMax = "6G";
          fileSizeMax = "1G";
        };
        sandbox = {
          denyAddresses = [
            "10.0.0.0/8"
            "fe80::/10"
          ];
          bindOnly = [
            "udp:27016"
            "tcp:27016"
          ];
        };
      };
      x_y = {
        ip = "192.0.2.1";
        port = 27017;
        map = "c2m1_highway";
        autoStart = false;
        serviceConfig.IOWeight = "50";
      };
    };
  };
}
