# What the page shows is what systemd says, within a second, whatever happens to the server, the page, the broker and the browser. Says each
# case with its longest delay.
use strict;
require "/http.pl";

my $unit = "left4me-server\@3.service";
my $most = 1_000_000;

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
    my ($before) = newest($anna);
    my $answer = press($anna, $verb);
    if ($who) {
        whole($answer) =~ m{^HTTP/1.1 303 } or die "$verb was not begun";
        run("systemctl", "restart", "$who.service");
    } else {
        # It leaves as it presses: nobody reads the answer, and the page may not have heard it yet.
        close($answer);
        kill("TERM", $_->{pid}) for @tabs;
    }
    my (undef, $outcome) = newest($anna, $before);
    die "after a restart of $who: $outcome" if $outcome ne "succeeded";
    my $back = tab($anna, "/servers/3");
    wait_for($back, $verb eq "start" ? "active" : "inactive");
    is_right($verb eq "start" ? "active" : "inactive", $back) if !$who;
    case($who ? "a restart of $who" : "a browser that left");
}
