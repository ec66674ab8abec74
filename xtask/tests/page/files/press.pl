# Presses a button of server 3's on the operator's page, over its Unix socket, and waits until the job has ended: perl is what every
# Debian has. The page's stream says it; nothing is asked twice.
use strict;
use Socket;

sub request {
    my ($what, $headers) = @_;
    socket(my $stream, AF_UNIX, SOCK_STREAM, 0) or die "socket: $!";
    connect($stream, pack_sockaddr_un("/run/left4me-web/socket")) or die "connect: $!";
    syswrite($stream, "$what HTTP/1.1\r\nHost: localhost\r\n$headers\r\n") or die "write: $!";
    return $stream;
}

sub whole {
    my $stream = request($_[0], "Connection: close\r\nSec-Fetch-Site: same-origin\r\nContent-Length: 0\r\n");
    local $/;
    return scalar <$stream>;
}

my ($verb, $state) = @ARGV;
# The page knows its servers once the broker has told it.
my $servers = request("GET /live?page=/servers", "");
while (<$servers>) { last if /row-3/ }
my $answer = whole("POST /servers/3/$verb");
$answer =~ m{^HTTP/1.1 303 } or die $answer;
my $jobs = request("GET /live?page=/jobs", "");
my ($is_new, $number) = (0, 0);
while (<$jobs>) {
    $is_new = 1 if /event: part/;
    # The newest job is the first of a part.
    $number = $1 if $is_new && m{href="/jobs/(\d+)"};
    next unless $is_new && /class="state (\w+)"/;
    $is_new = 0;
    last if $1 eq "succeeded";
    die whole("GET /jobs/$number") if $1 eq "failed" || $1 eq "interrupted";
}
# The state that is shown is systemd's.
my $shown = request("GET /live?page=/servers/3", "");
while (<$shown>) { exit 0 if /class="state $state"/ }
die "the stream ended";
