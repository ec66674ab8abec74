//! `cargo xtask repro`: a run that was handed over, made again here.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use vm_tests::cache;
use vm_tests::host::accel::Clock;
use vm_tests::host::process::{self, Program};
use vm_tests::image::{EXTERNAL, Suite};
use vm_tests::machine::Cancel;
use vm_tests::report::why::{of_inputs, of_recordings};
use vm_tests::run::at::{At, span};
use vm_tests::run::guest::Guest;
use vm_tests::run::one::{self, Bounds};
use vm_tests::run::prepare::{Machines, prepare_one};
use vm_tests::run::repro::{About, Replayed, Repro};
use vm_tests::scenario::WrongInput;
use vm_tests::workspace::Workspace;

use crate::exit::{FAILED, PASSED};
use crate::left4me;
use crate::machine::{Image, MachineArgs};
use crate::shell::{moment, quoted};

/// Makes a run again that was handed over, and says whether it is the same one.
///
/// FILE is a repro.tar.zst, which vm-test writes beside the results of a scenario that fails, or of all with --repro. It has what the
/// guest was given, so the scenario's files and programs are those of the run, whatever this checkout has. QEMU, the image and the
/// programs of the harness are this checkout's; if the recording is another one, the first that differs of all inputs is named, or
/// else the first event. Exit status 0 if the recording is the same, 1 if it is another. With --shell, the last command's.
#[derive(Debug, Args)]
pub(crate) struct ReproArgs {
    /// The bundle
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Open a shell in the guest at the instant at which the run went wrong, where everything but the shell stands still. The run is
    /// made again only if an input is another one here
    #[arg(long)]
    shell: bool,

    /// The instant for --shell, as that of `cargo xtask shell`: 'umount fails', 'cycle 3: unmounted'
    #[arg(long, value_name = "INSTANT", requires = "shell")]
    at: Option<At>,

    /// So much earlier: 50ms
    #[arg(long, value_name = "TIME", requires = "shell", value_parser = span)]
    before: Option<Duration>,

    #[command(flatten)]
    machine: MachineArgs,
}

/// Of git, for one word.
const DEADLINE: Duration = Duration::from_secs(20);
/// As many digits of a hash as messages have.
const DIGITS: usize = 12;

/// Returns the exit code.
pub(crate) async fn run(args: &ReproArgs, cancel: Cancel) -> Result<u8> {
    let repro = Repro::read(&args.file)?;
    let About { guest: on, scenario, commit, .. } = &repro.about;
    let made = if commit.is_empty() { String::new() } else { format!(", made at commit {commit}") };
    println!("{on}/{scenario}{made}: recording {}", digits(&repro.recording_sha256));
    let workspace = left4me::workspace()?;
    let machines = machines(&repro.about, &args.machine).await?;
    let directory = workspace.target.join("vm-repro").join(std::process::id().to_string());
    std::fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    let guest = prepare_one(&workspace, &machines, &[repro.wanted()], &directory, cancel.clone()).await?;
    if args.shell {
        let code = shell(&workspace, &guest, &repro, args, &directory, cancel).await;
        cache::remove_tree(&directory)?;
        return code;
    }
    let replayed = repro.replay(&guest, &directory.join("run"), cancel).await?;
    print!("{}", told(&repro, &replayed));
    print!("{}", own(&workspace, &guest, &repro));
    print!("{}", to_look(args, &repro));
    cache::remove_tree(&directory)?;
    Ok(if replayed.recording_sha256 == repro.recording_sha256 { PASSED } else { FAILED })
}

/// Opens the instant, in a run that is the same as the bundle's if all its inputs are.
async fn shell(
    workspace: &Workspace,
    guest: &Guest,
    repro: &Repro,
    args: &ReproArgs,
    directory: &Path,
    cancel: Cancel,
) -> Result<u8> {
    let at = args.at.clone().or_else(|| look(repro));
    let at = at.ok_or_else(|| WrongInput::new("--at: this run went as expected: name an instant of it"))?;
    let inputs = repro.inputs_on(guest)?;
    let recording = if inputs.key()? == repro.inputs.key()? {
        println!("all inputs are the same, so the run is: {}", digits(&repro.recording_sha256));
        repro.recording.clone()
    } else {
        let replayed = repro.replay(guest, &directory.join("run"), cancel.clone()).await?;
        print!("{}", told(repro, &replayed));
        replayed.recording
    };
    let instant = at.find(&recording)?.before(args.before.unwrap_or_default());
    moment::look(workspace, guest, &repro.given(), instant, cancel).await
}

/// Where to look first.
fn look(repro: &Repro) -> Option<At> {
    repro.look.clone().or_else(|| At::of_failure(&repro.recording, 1))
}

/// The command that opens a shell at the failure.
fn to_look(args: &ReproArgs, repro: &Repro) -> String {
    let file = quoted(&args.file.display().to_string());
    let words = repro
        .look
        .as_ref()
        .map(|at| format!("to look into it, at '{at}': cargo xtask repro {file} --shell\n"));
    words.unwrap_or_default()
}

/// The machines that a bundle wants: its image, and all else as the flags say.
async fn machines(about: &About, args: &MachineArgs) -> Result<Machines> {
    let wrong = |what: String| WrongInput::new(format!("{}/{}: {what}", about.guest, about.scenario));
    let mut args = MachineArgs { clock: args.clock.or(Some(Clock::Virtual)), ..args.clone() };
    let asked = args.image != [Image::default()];
    let image = about.guest.parse::<Suite>().map(Image::Debian).or_else(|_no_suite| about.guest.parse());
    match image {
        Ok(image) if args.kernel.is_some() || (asked && args.image != [image]) => {
            Err(wrong(format!("it ran on {image}: leave out the flags that name another guest")).into())
        }
        Ok(image) => {
            args.image = vec![image];
            args.machines().await
        }
        Err(_) if about.guest == EXTERNAL && args.kernel.is_some() => args.machines().await,
        Err(_) if about.guest == EXTERNAL => {
            let what = "it ran on an external image: name it with --kernel, --modules and --root";
            Err(wrong(what.to_owned()).into())
        }
        Err(_) => Err(wrong("this harness knows no such guest".to_owned()).into()),
    }
}

/// Whether it is the same run.
fn told(repro: &Repro, replayed: &Replayed) -> String {
    let inputs = of_inputs(&repro.inputs.differences(&replayed.inputs));
    let (there, here) = (digits(&repro.recording_sha256), digits(&replayed.recording_sha256));
    let (head, why) = if there == here {
        let head = format!("the same recording: {here}\n");
        (head, inputs.map(|inputs| format!("although not all inputs are the same:\n{inputs}")))
    } else {
        let why = inputs.unwrap_or_else(|| of_recordings(&repro.recording, &replayed.recording));
        (format!("another recording: {there} -> {here}\n"), Some(why))
    };
    let mut text = head;
    why.iter().flat_map(|why| why.lines()).for_each(|line| text.push_str(&format!("  {line}\n")));
    text
}

/// What this checkout would give the guest otherwise, if it has the scenario.
fn own(workspace: &Workspace, guest: &Guest, repro: &Repro) -> String {
    let name = &repro.about.scenario;
    let Ok(scenarios) = workspace.scenarios(std::slice::from_ref(name)) else { return String::new() };
    let bounds = Bounds { cycles: repro.inputs.cycles(), ..Bounds::default() };
    let runs = scenarios.iter().filter(|one| one.manifest.memory_mib == repro.about.memory_mib);
    let mut text = String::new();
    for ours in runs.filter_map(|scenario| one::inputs(guest, scenario, bounds).ok().flatten()) {
        match of_inputs(&repro.inputs.differences(&ours)) {
            Some(lines) => {
                text.push_str(&format!("{name} of this checkout is another run:\n"));
                lines.lines().for_each(|line| text.push_str(&format!("  {line}\n")));
            }
            None => text.push_str(&format!("{name} of this checkout is the same run\n")),
        }
    }
    text
}

fn digits(hash: &str) -> &str {
    hash.get(..DIGITS).unwrap_or(hash)
}

/// The commit of a checkout, and whether there is more than it has; empty where git does not say.
pub(crate) async fn commit(root: &Path) -> String {
    let git = async |arguments: &[&str]| {
        let program = Program::new("git").arg("-C").arg(root).args(arguments);
        process::output(program, DEADLINE).await.ok().map(|said| said.text())
    };
    let Some(commit) = git(&["rev-parse", "HEAD"]).await else { return String::new() };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).await;
    let more = if changed.is_none_or(|changed| changed.trim().is_empty()) { "" } else { " with changes" };
    format!("{}{more}", digits(commit.trim()))
}
