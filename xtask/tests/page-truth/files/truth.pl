# What the page shows is what systemd says, within a second, whatever happens to the server, the page, the broker and the browser. Over the
# page's Unix socket, as press.pl does it. Says each case with its longest delay.
use strict;
use Socket;

my $unit = "left4me-server\@3.service";
my $most = 1_000_000;

sub now {
    my $time = "\0" x 16;
    syscall(228, 1, $time) == 0 or die "clock_gettime: $!";
    my ($seconds, $nanos) = unpack("qq", $time);
    return $seconds * 1_000_000 + int($nanos / 1000);
}

sub request {
    my ($what, $headers, $body) = @_;
    socket(my $stream, AF_UNIX, SOCK_STREAM, 0) or die "socket: $!";
    connect($stream, pack_sockaddr_un("/run/left4me-web/socket")) or die "connect: $!";
    syswrite($stream, "$what HTTP/1.1\r\nHost: localhost\r\n$headers\r\n$body") or die "write: $!";
    return $stream;
}

sub posted {
    my ($path, $cookie, $body) = @_;
    my $form = "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: " . length($body);
    return request("POST $path", "Connection: close\r\nSec-Fetch-Site: same-origin\r\n$form\r\n$cookie", $body);
}

sub whole { my ($stream) = @_; local $/; return scalar(<$stream>) // ""; }

sub login {
    my ($user) = @_;
    my $answer = whole(posted("/login", "", "user=$user&password=correct+horse+battery"));
    $answer =~ m{^HTTP/1.1 303 .*set-cookie: (left4me=[0-9a-f]{64});}s or die $answer;
    my $cookie = "Cookie: $1\r\n";
    my $page = whole(request("GET /jobs", "Connection: close\r\n$cookie", ""));
    $page =~ m{name="token" value="([0-9a-f]{64})"} or die $page;
    return { cookie => $cookie, token => $1 };
}

sub press { my ($who, $verb) = @_; return posted("/servers/3/$verb", $who->{cookie}, "token=$who->{token}"); }
sub follow { my ($who, $page) = @_; return request("GET /live?page=$page", $who->{cookie}, ""); }

# Reads a page's stream until it shows something.
sub shown {
    my ($stream, $words) = @_;
    while (<$stream>) { return if /$words/ }
    die "a stream has ended before it showed $words";
}
sub systemd { my ($what) = @_; my $said = `systemctl show --value --property=$what $unit`; chomp $said; return $said; }
sub run { system(@_) == 0 or die "@_: $?" }

my @readers;
my $main = $$;
END { kill("TERM", @readers) if $$ == $main }
# A tab, which a process of its own reads: each state that it shows has its time.
sub tab {
    my ($who, $page) = @_;
    pipe(my $from, my $to) or die "pipe: $!";
    my $stream = follow($who, $page);
    my $pid = fork() // die "fork: $!";
    if (!$pid) {
        while (<$stream>) { syswrite($to, now() . " $1\n") if $page eq "/servers" ? /class="state (\w*)"/ : /It is <span class="state (\w*)"/ }
        exit 0;
    }
    push @readers, $pid;
    return { from => $from, pid => $pid, rest => "", state => "", since => 0 };
}

# Takes what it has shown, up to a time; or, if a state is named, until it shows that.
sub take {
    my ($tab, $until, $state) = @_;
    while (!defined $state || $tab->{state} ne $state) {
        my ($bits, $left) = ("", $until - now());
        vec($bits, fileno($tab->{from}), 1) = 1;
        if (!select($bits, undef, undef, $left > 0 ? $left / 1_000_000 : 0)) { next if $left > 0; return; }
        sysread($tab->{from}, $tab->{rest}, 4096, length $tab->{rest}) or die "a tab has ended";
        while ($tab->{rest} =~ s/^(\d+) (\w*)\n//) { ($tab->{state}, $tab->{since}) = ($2, $1) if $tab->{state} ne $2; }
    }
}
sub wait_for {
    my ($tab, $state) = @_;
    take($tab, now() + 60_000_000, $state);
    $tab->{state} eq $state or die "after a minute a tab shows $tab->{state}, not $state";
}

my $worst;
# A second after systemd's state changed all tabs show that, and the last of them came so late.
sub is_right {
    my ($state, @tabs) = @_;
    my $since = systemd("StateChangeTimestampMonotonic");
    systemd("ActiveState") eq $state or die "systemd says " . systemd("ActiveState") . ", not $state";
    for my $tab (@tabs) {
        take($tab, $since + $most);
        $tab->{state} eq $state or die "a second after systemd said $state a tab shows $tab->{state}";
        $tab->{since} <= $since + $most or die "$state was shown after " . ($tab->{since} - $since) . " us";
        my $late = $tab->{since} > $since ? $tab->{since} - $since : 0;
        $worst = $late if !defined $worst || $late > $worst;
    }
}
sub case { my ($name) = @_; print $name, defined $worst ? ": shown after $worst us at most\n" : "\n"; undef $worst; }

$| = 1;
my ($anna, $otto) = (login("anna"), login("otto"));
my $tab = tab($anna, "/servers/3");
wait_for($tab, "active");

# It crashes, and systemd starts it once more.
run("systemctl", "kill", "--kill-whom=main", "--signal=SEGV", $unit);
wait_for($tab, "activating");
is_right("activating", $tab);
wait_for($tab, "active");
is_right("active", $tab);
case("a crash");

# It is killed while it is restarted.
run("systemctl", "--no-block", "restart", $unit);
run("systemctl", "kill", "--signal=KILL", $unit);
run("systemctl", "start", $unit);
is_right("active", $tab);
case("a kill during a restart");

# It is stopped behind the page's back, in twenty tabs.
run("systemctl", "reset-failed", $unit);
my @tabs = map { tab($_ % 2 ? $anna : $otto, $_ % 3 ? "/servers/3" : "/servers") } 1 .. 20;
wait_for($_, "active") for @tabs;
run("systemctl", "stop", $unit);
is_right("inactive", @tabs);
case("a stop by systemctl, in 20 tabs");

# Two press at once: one job, and the other is told which.
my @answers = map { whole($_) } map { press($_, "start") } $anna, $otto;
my ($begun) = grep { m{^HTTP/1.1 303 } } @answers;
my ($refused) = grep { m{^HTTP/1.1 409 } } @answers;
$begun && $refused or die "two at once: @answers";
$refused =~ m{href="/jobs/(\d+)"} or die $refused;
shown(follow($anna, "/jobs/$1"), qr/class="state succeeded"/);
case("two at once");

# The page, the broker, and then the browser go away in the middle of a job; it has its outcome all the same.
for my $who ("left4me-web", "left4me-broker", "") {
    my $verb = systemd("ActiveState") eq "active" ? "reset" : "start";
    my $answer = press($anna, $verb);
    # Of a browser that is gone nobody reads.
    if ($who) {
        whole($answer) =~ m{^HTTP/1.1 303 } or die "$verb was not begun";
        run("systemctl", "restart", "$who.service");
    } else {
        close($answer);
        kill("TERM", $_->{pid}) for @tabs;
    }
    my $jobs = follow($anna, "/jobs");
    my $newest = 0;
    while (<$jobs>) {
        $newest = 1 if /event: part/;
        next unless $newest && /class="state (\w+)"/;
        die "after a restart of $who: $1" if $1 eq "failed" || $1 eq "interrupted";
        last if $1 eq "succeeded";
        $newest = 0;
    }
    my $back = tab($anna, "/servers/3");
    wait_for($back, $verb eq "start" ? "active" : "inactive");
    is_right($verb eq "start" ? "active" : "inactive", $back) if !$who;
    case($who ? "a restart of $who" : "a browser that left");
}
