# Our own harness on the guest: the product's cycles, judged as they are on Debian.
{
  runCommand,
  qemu,
  xtask,
  guest,
  programs,
}:
runCommand "left4me-harness"
  {
    nativeBuildInputs = [
      qemu
      xtask
    ];
    requiredSystemFeatures = [ "kvm" ];
    # A snapshot is compared, never written.
    INSTA_UPDATE = "no";
  }
  ''
    # Where xtask was built, in a sandbox: it uses the files of that checkout and of no other.
    cp -r ${../.} source
    chmod -R u+w source
    cd source
    xtask vm-test --image nixos --guest ${guest} --programs ${programs}/bin --results $out overlay-unit
  ''
