# What scripts need to use the operator's page over its Unix socket as a browser does: perl is what every Debian has. For `require`.
use strict;
use Socket;

# Sends a request, and gives the connection back.
sub request {
    my ($what, $headers, $body) = @_;
    socket(my $stream, AF_UNIX, SOCK_STREAM, 0) or die "socket: $!";
    connect($stream, pack_sockaddr_un("/run/left4me-web/socket")) or die "connect: $!";
    syswrite($stream, "$what HTTP/1.1\r\nHost: localhost\r\n$headers\r\n$body") or die "write: $!";
    return $stream;
}

# All of an answer whose connection is closed then.
sub whole { my ($stream) = @_; local $/; return scalar(<$stream>) // ""; }

sub got { my ($path, $cookie) = @_; return whole(request("GET $path", "Connection: close\r\n$cookie", "")); }

sub posted {
    my ($path, $cookie, $body) = @_;
    my $form = "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: " . length($body);
    return request("POST $path", "Connection: close\r\nSec-Fetch-Site: same-origin\r\n$form\r\n$cookie", $body);
}

# Comes in; the cookie's line and the forms' token.
sub login {
    my ($user) = @_;
    my $answer = whole(posted("/login", "", "user=$user&password=correct+horse+battery"));
    $answer =~ m{^HTTP/1.1 303 .*set-cookie: (left4me=[0-9a-f]{64});}s or die $answer;
    my $cookie = "Cookie: $1\r\n";
    my $page = got("/jobs", $cookie);
    $page =~ m{name="token" value="([0-9a-f]{64})"} or die $page;
    return { cookie => $cookie, token => $1 };
}

# Presses a button of server 3's.
sub press { my ($who, $verb) = @_; return posted("/servers/3/$verb", $who->{cookie}, "token=$who->{token}"); }

# A page's stream.
sub follow { my ($who, $page) = @_; return request("GET /live?page=$page", $who->{cookie}, ""); }

# Reads a page's stream until it shows something.
sub shown {
    my ($stream, $words) = @_;
    while (<$stream>) { return if /$words/ }
    die "a stream has ended before it showed $words";
}

# Follows the jobs until the newest, which comes after a number if there is one, has ended: its number and its state.
sub newest {
    my ($who, $after) = @_;
    my $jobs = follow($who, "/jobs");
    my ($is_new, $number) = (0, 0);
    while (<$jobs>) {
        $is_new = 1 if /event: part/;
        # The newest job is the first of a part.
        $number = $1 if $is_new && m{href="/jobs/(\d+)"};
        next unless $is_new && /class="state (\w+)"/;
        $is_new = 0;
        next if $number <= ($after // 0);
        return ($number, $1) if $1 eq "succeeded" || $1 eq "failed" || $1 eq "interrupted";
    }
    die "the stream of the jobs has ended";
}

# Microseconds of CLOCK_MONOTONIC.
sub now {
    my $time = "\0" x 16;
    syscall(228, 1, $time) == 0 or die "clock_gettime: $!";
    my ($seconds, $nanos) = unpack("qq", $time);
    return $seconds * 1_000_000 + int($nanos / 1000);
}

1;
