# Presses a button of server 3's on the operator's page, and waits until the job has ended. The page's stream says it; nothing is asked
# twice. `login` comes in before, and keeps the session below /run.
use strict;
require "/http.pl";

my ($verb, $state) = @ARGV;
my $kept = "/run/press";
if ($verb eq "login") {
    my $who = login("anna");
    umask 077;
    open(my $file, ">", $kept) or die "open $kept: $!";
    print $file "$who->{cookie}$who->{token}" or die "write $kept: $!";
    close $file or die "close $kept: $!";
    exit 0;
}
# Who cannot connect does not come as far as that.
request("GET /login", "", "");
open(my $file, "<", $kept) or die "open $kept: $!";
my $who = {};
($who->{cookie}, $who->{token}) = do { local $/; split /(?<=\n)/, <$file> };
# The page knows its servers once the broker has told it.
shown(follow($who, "/servers"), "row-3");
my $answer = whole(press($who, $verb));
$answer =~ m{^HTTP/1.1 303 } or die $answer;
my ($number, $outcome) = newest($who);
die got("/jobs/$number", $who->{cookie}) if $outcome ne "succeeded";
# The state that is shown is systemd's.
shown(follow($who, "/servers/3"), qr/class="state $state"/);
