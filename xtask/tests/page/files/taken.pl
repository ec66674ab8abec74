# A page that was taken over: this runs in a copy of its unit, with its user and its sandbox, and tries what else it could do. What it
# may do is ask the broker.
use strict;
use Socket;

sub broker {
    my ($call) = @_;
    socket(my $stream, AF_UNIX, SOCK_STREAM, 0) or die "socket: $!";
    connect($stream, pack_sockaddr_un("/run/left4me-broker/socket")) or die "connect to the broker: $!";
    syswrite($stream, "$call\0") or die "write: $!";
    local $/ = "\0";
    return scalar(<$stream>) // "";
}

my $seen = broker('{"method":"left4me.Broker.Watch"}');
$seen =~ /"servers"/ or die "the broker does not answer: $seen";

my $ticket = "0123456789abcdef" x 2;
my %tries = (
    "read the servers' files" => sub { opendir(my $all, "/var/lib/left4me") },
    "read the broker's jobs" => sub { opendir(my $all, "/var/lib/left4me-broker") },
    "see PID 1" => sub { -e "/proc/1/status" },
    "write its own program" => sub { open(my $file, ">>", "/usr/local/libexec/left4me/left4me-web") },
    "write a unit" => sub { open(my $file, ">", "/etc/systemd/system/mine.service") },
    "write below /run" => sub { open(my $file, ">", "/run/mine") },
    "speak to a network" => sub { socket(my $stream, AF_INET, SOCK_STREAM, 0) },
    "become root" => sub { syscall(105, 0) == 0 },
    "mount" => sub { my ($what, $at) = ("tmpfs", "/tmp"); syscall(165, $what, $at, $what, 0, 0) == 0 },
    "have a namespace" => sub { syscall(272, 0x10000000) == 0 },
    "kill a server" => sub { kill 0, 1 },
    "stop a server past the broker" => sub { system("systemctl --no-ask-password stop left4me-server\@3.service 2>&1") == 0 },
    "become root by sudo" => sub { system("sudo -n true 2>&1") == 0 },
    "start a unit of its own" => sub { system("systemd-run --no-ask-password true 2>&1") == 0 },
    "ask the broker for a path" =>
        sub { broker('{"method":"left4me.Broker.Server","parameters":{"id":"../../etc"}}') !~ /InvalidParameter/ },
    "ask it for a verb that it has not" => sub { broker('{"method":"left4me.Broker.Run"}') !~ /MethodNotFound/ },
    "ask it with a parameter too many" => sub {
        broker(qq({"method":"left4me.Broker.Reset","parameters":{"id":"3","ticket":"$ticket","path":"/"}})) !~ /InvalidParameter/;
    },
);
my @could = grep { $tries{$_}->() } sort keys %tries;
die "it could: " . join("; ", @could) . "\n" if @could;
