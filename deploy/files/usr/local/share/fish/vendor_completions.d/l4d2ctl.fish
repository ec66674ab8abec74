# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_l4d2ctl_global_optspecs
    string join \n h/help V/version
end

function __fish_l4d2ctl_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_l4d2ctl_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_l4d2ctl_using_subcommand
    set -l cmd (__fish_l4d2ctl_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c l4d2ctl -n "__fish_l4d2ctl_needs_command" -s h -l help -d 'Print help'
complete -c l4d2ctl -n "__fish_l4d2ctl_needs_command" -s V -l version -d 'Print version'
complete -c l4d2ctl -n "__fish_l4d2ctl_needs_command" -f -a "create" -d 'Make an instance: which layers a server has, and its port'
complete -c l4d2ctl -n "__fish_l4d2ctl_needs_command" -f -a "start" -d 'Mount the overlays and start the servers'
complete -c l4d2ctl -n "__fish_l4d2ctl_needs_command" -f -a "stop" -d 'Stop the servers and unmount the overlays'
complete -c l4d2ctl -n "__fish_l4d2ctl_needs_command" -f -a "reset" -d 'Stop the servers and delete everything they wrote'
complete -c l4d2ctl -n "__fish_l4d2ctl_needs_command" -f -a "destroy" -d 'Delete an instance: everything its server wrote, and its own files'
complete -c l4d2ctl -n "__fish_l4d2ctl_needs_command" -f -a "list" -d 'List the instances with their state, port and layers'
complete -c l4d2ctl -n "__fish_l4d2ctl_needs_command" -f -a "status" -d 'Show the state of the servers\' units'
complete -c l4d2ctl -n "__fish_l4d2ctl_needs_command" -f -a "doctor" -d 'Find settings of loaded units and drop-ins that break mounting or unmounting'
complete -c l4d2ctl -n "__fish_l4d2ctl_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand create" -l layer -d 'A layer over the installation: a directory in /var/lib/left4me/overlays. The first that is named is topmost: its files hide those of the next' -r
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand create" -l port -d 'The server\'s port, UDP and TCP, 1024 to 65535; without it 27015' -r
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand create" -l arguments -d 'What else the server is given on its command line, as one word: --arguments \'+sv_lan 1\'' -r
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand create" -l json -d 'Print JSON on stdout: an object'
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand create" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand start" -l timeout -d 'Time limit for systemd\'s job, and again for deleting, for each instance' -r
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand start" -l all -d 'All instances with a file in /var/lib/left4me/instances; for stop and reset also those with a runtime directory; for reset also what an interrupted reset left'
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand start" -l json -d 'Print JSON on stdout: an object for one ID, an array for several, --all or none'
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand start" -s h -l help -d 'Print help'
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand stop" -l timeout -d 'Time limit for systemd\'s job, and again for deleting, for each instance' -r
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand stop" -l grace -d 'Warn the players and wait this long: 30s, 2m, or seconds. Writes `say Server restarts in 30 s` to each server\'s console, the FIFO `console` in its directory, if there is one. One wait for all servers; it ends when none runs' -r
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand stop" -l all -d 'All instances with a file in /var/lib/left4me/instances; for stop and reset also those with a runtime directory; for reset also what an interrupted reset left'
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand stop" -l json -d 'Print JSON on stdout: an object for one ID, an array for several, --all or none'
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand stop" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand reset" -l timeout -d 'Time limit for systemd\'s job, and again for deleting, for each instance' -r
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand reset" -l grace -d 'Warn the players and wait this long: 30s, 2m, or seconds. Writes `say Server restarts in 30 s` to each server\'s console, the FIFO `console` in its directory, if there is one. One wait for all servers; it ends when none runs' -r
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand reset" -l all -d 'All instances with a file in /var/lib/left4me/instances; for stop and reset also those with a runtime directory; for reset also what an interrupted reset left'
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand reset" -l json -d 'Print JSON on stdout: an object for one ID, an array for several, --all or none'
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand reset" -s y -l yes -d 'Do not ask. Without a terminal on stdin and stderr it never asks'
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand reset" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand destroy" -l timeout -d 'Time limit for systemd\'s job, and again for deleting, for each instance' -r
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand destroy" -l json -d 'Print JSON on stdout: an object for one ID, an array for several, --all or none'
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand destroy" -s y -l yes -d 'Do not ask. Without a terminal on stdin and stderr nothing is deleted unless it is given'
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand destroy" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand list" -l timeout -d 'Time limit for systemd\'s job, and again for deleting, for each instance' -r
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand list" -l json -d 'Print JSON on stdout: an object for one ID, an array for several, --all or none'
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand list" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand status" -l timeout -d 'Time limit for systemd\'s job, and again for deleting, for each instance' -r
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand status" -l json -d 'Print JSON on stdout: an object for one ID, an array for several, --all or none'
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand status" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand doctor" -l timeout -d 'Time limit for systemd\'s job, and again for deleting, for each instance' -r
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand doctor" -l json -d 'Print JSON on stdout: an object for one ID, an array for several, --all or none'
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand doctor" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand help; and not __fish_seen_subcommand_from create start stop reset destroy list status doctor help" -f -a "create" -d 'Make an instance: which layers a server has, and its port'
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand help; and not __fish_seen_subcommand_from create start stop reset destroy list status doctor help" -f -a "start" -d 'Mount the overlays and start the servers'
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand help; and not __fish_seen_subcommand_from create start stop reset destroy list status doctor help" -f -a "stop" -d 'Stop the servers and unmount the overlays'
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand help; and not __fish_seen_subcommand_from create start stop reset destroy list status doctor help" -f -a "reset" -d 'Stop the servers and delete everything they wrote'
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand help; and not __fish_seen_subcommand_from create start stop reset destroy list status doctor help" -f -a "destroy" -d 'Delete an instance: everything its server wrote, and its own files'
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand help; and not __fish_seen_subcommand_from create start stop reset destroy list status doctor help" -f -a "list" -d 'List the instances with their state, port and layers'
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand help; and not __fish_seen_subcommand_from create start stop reset destroy list status doctor help" -f -a "status" -d 'Show the state of the servers\' units'
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand help; and not __fish_seen_subcommand_from create start stop reset destroy list status doctor help" -f -a "doctor" -d 'Find settings of loaded units and drop-ins that break mounting or unmounting'
complete -c l4d2ctl -n "__fish_l4d2ctl_using_subcommand help; and not __fish_seen_subcommand_from create start stop reset destroy list status doctor help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
