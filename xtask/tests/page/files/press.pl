# Presses a button of server 3's on the operator's page, over its Unix socket, and waits until the job has ended: perl is what every
# Debian has. The page's stream says it; nothing is asked twice. `login` comes in before, and keeps the session below /run.
use strict;
use Socket;

sub request {
    my ($what, $headers, $body) = @_;
    socket(my $stream, AF_UNIX, SOCK_STREAM, 0) or die "socket: $!";
    connect($stream, pack_sockaddr_un("/run/left4me-web/socket")) or die "connect: $!";
    syswrite($stream, "$what HTTP/1.1\r\nHost: localhost\r\n$headers\r\n$body") or die "write: $!";
    return $stream;
}

sub whole {
    my ($what, $cookie, $body) = @_;
    my $form = "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: " . length($body);
    my $stream = request($what, "Connection: close\r\nSec-Fetch-Site: same-origin\r\n$form\r\n$cookie", $body);
    local $/;
    return scalar <$stream>;
}

my ($verb, $state) = @ARGV;
my $kept = "/run/press";
if ($verb eq "login") {
    my $answer = whole("POST /login", "", "user=anna&password=correct+horse+battery");
    $answer =~ m{^HTTP/1.1 303 .*set-cookie: (left4me=[0-9a-f]{64});}s or die $answer;
    my $cookie = "Cookie: $1\r\n";
    my $page = whole("GET /jobs", $cookie, "");
    $page =~ m{name="token" value="([0-9a-f]{64})"} or die $page;
    umask 077;
    open(my $file, ">", $kept) or die "open $kept: $!";
    print $file "$cookie$1" or die "write $kept: $!";
    close $file or die "close $kept: $!";
    exit 0;
}
# Who cannot connect does not come as far as that.
request("GET /login", "", "");
open(my $file, "<", $kept) or die "open $kept: $!";
my ($cookie, $token) = do { local $/; split /(?<=\n)/, <$file> };
# The page knows its servers once the broker has told it.
my $servers = request("GET /live?page=/servers", $cookie, "");
while (<$servers>) { last if /row-3/ }
my $answer = whole("POST /servers/3/$verb", $cookie, "token=$token");
$answer =~ m{^HTTP/1.1 303 } or die $answer;
my $jobs = request("GET /live?page=/jobs", $cookie, "");
my ($is_new, $number) = (0, 0);
while (<$jobs>) {
    $is_new = 1 if /event: part/;
    # The newest job is the first of a part.
    $number = $1 if $is_new && m{href="/jobs/(\d+)"};
    next unless $is_new && /class="state (\w+)"/;
    $is_new = 0;
    last if $1 eq "succeeded";
    die whole("GET /jobs/$number", $cookie, "") if $1 eq "failed" || $1 eq "interrupted";
}
# The state that is shown is systemd's.
my $shown = request("GET /live?page=/servers/3", $cookie, "");
while (<$shown>) { exit 0 if /class="state $state"/ }
die "the stream ended";
