# Uses the operator's page so many times, and says what it took: a name and a number a line, microseconds, bytes and KiB.
use strict;
require "/http.pl";

my ($rounds) = @ARGV;
$| = 1;

sub timed { my ($name, $what) = @_; my $begun = now(); my $value = $what->(); print "$name ", now() - $begun, "\n"; return $value; }

# Both programs together: what is theirs of the pages that are in memory, and the most that each had.
sub memory {
    my ($name) = @_;
    my ($pss, $most) = (0, 0);
    for my $unit ("left4me-web", "left4me-broker") {
        my $pid = `systemctl show --value --property=MainPID $unit.service`;
        chomp $pid;
        for (["smaps_rollup", qr/^Pss:\s+(\d+)/, \$pss], ["status", qr/^VmHWM:\s+(\d+)/, \$most]) {
            my ($file, $words, $sum) = @$_;
            open(my $lines, "<", "/proc/$pid/$file") or die "$unit: $file: $!";
            while (<$lines>) { $$sum += $1 if /$words/ }
        }
    }
    print "$name $pss\n", "$name.most $most\n";
}

my $who = timed("login", sub { login("anna") });
# The page knows its servers once the broker has told it.
shown(follow($who, "/servers"), "row-3");
for my $round (1 .. $rounds) {
    my $begun = now();
    my $bytes = length(timed("html", sub { got("/servers", $who->{cookie}) }));
    $bytes += length(got($_, $who->{cookie})) for "/page.css", "/page.js";
    print "page ", now() - $begun, "\n", "bytes $bytes\n";
    timed("server", sub { got("/servers/3", $who->{cookie}) });
    for my $verb ("start", "reset") {
        my $answer = timed("answer", sub { whole(press($who, $verb)) });
        $answer =~ m{^HTTP/1.1 303 } or die $answer;
        my ($number, $outcome) = newest($who);
        die got("/jobs/$number", $who->{cookie}) if $outcome ne "succeeded";
    }
}
memory("memory");
my @tabs = map { follow($who, $_ % 2 ? "/servers" : "/servers/3") } 1 .. 20;
shown($_, "event: part") for @tabs;
memory("tabs");
