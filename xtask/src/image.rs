//! `cargo xtask image`: makes sure that a guest image is there, and says where, of what, and what has moved since its lock file.

use std::path::Path;

use clap::Args;
use vm_tests::image::packages::{Lock, Moved};
use vm_tests::image::{self, Image, Request, Suite};

use crate::exit::{FAILED, PASSED};
use crate::left4me;

/// Builds the image that guests boot from, unless it exists.
///
/// Makes a guest's root file system from Debian's packages, without root, in about a minute, and keeps it until
/// its inputs change. Other commands do this themselves when they need an image. Says which packages are not as the
/// suite's lock file has them.
#[derive(Debug, Args)]
pub(crate) struct ImageArgs {
    /// Debian suite: bookworm, trixie or sid
    // It was --suite, which CI jobs may still say.
    #[arg(long, alias = "suite", value_name = "SUITE", default_value_t = Suite::default())]
    image: Suite,

    /// Build it again even if it exists, with the current packages
    #[arg(long)]
    rebuild: bool,

    /// Compare the hash of each file of the image, not only its size
    #[arg(long)]
    verify: bool,

    /// Write the image's packages into the suite's lock file
    #[arg(long, conflicts_with = "locked")]
    lock: bool,

    /// Fail if a package is not as the suite's lock file has it
    #[arg(long)]
    locked: bool,

    /// Mirror for packages, in place of Debian's servers; an archive by date too:
    /// http://snapshot.debian.org/archive/debian/20261101T000000Z/
    #[arg(long, value_name = "URL", env = image::MIRROR_VAR)]
    mirror: Option<String>,
}

impl ImageArgs {
    fn request(&self) -> Request {
        // An empty variable in the environment is no mirror.
        let mirror = self.mirror.clone().filter(|mirror| !mirror.is_empty());
        Request { suite: self.image, packages: Vec::new(), mirror, rebuild: self.rebuild }
    }
}

/// Builds the image if need be and prints what it is; the exit status says whether it is as locked, where that is asked.
pub(crate) async fn run(args: &ImageArgs) -> anyhow::Result<u8> {
    let workspace = left4me::workspace()?;
    let image = image::ensure(&args.request(), &workspace.cache()?).await?;
    if args.verify {
        image.verify()?;
    }
    print!("{}", describe(&image, image.size()?));
    let now = image.lock();
    // It may be one that can't be read any more.
    let before = if args.lock {
        Lock::load(&workspace.images, args.image).unwrap_or(None)
    } else {
        Lock::load(&workspace.images, args.image)?
    };
    let moved = before.as_ref().map(|before| before.packages.moved(&now.packages));
    print!("{}", compared(&Lock::path(&workspace.images, args.image), moved.as_deref()));
    if args.lock {
        println!("written   {}", now.write(&workspace.images)?.display());
        return Ok(PASSED);
    }
    let is_locked = moved.is_some_and(|moved| moved.is_empty());
    if args.locked && !is_locked {
        println!(
            "not as locked: take it as it is with --lock, or name the archive of that day with --mirror"
        );
        return Ok(FAILED);
    }
    Ok(PASSED)
}

/// Each package that has moved, on a line of its own; `None` is no lock file.
fn compared(path: &Path, moved: Option<&[Moved]>) -> String {
    let path = path.display();
    match moved {
        None => format!("lock      none: --lock writes {path}\n"),
        Some([]) => format!("lock      as {path} has it\n"),
        Some(moved) => {
            let lines = moved.iter().map(|one| format!("  {one}\n"));
            format!("lock      moved since {path}:\n{}", lines.collect::<String>())
        }
    }
}

fn describe(image: &Image, bytes: u64) -> String {
    let manifest = &image.manifest;
    let version = |name: &str| manifest.packages.get(name).map_or("none", String::as_str);
    let rows = [
        ("suite", manifest.suite.to_string()),
        ("kernel", manifest.kernel_version.clone()),
        ("systemd", version("systemd").to_owned()),
        ("packages", format!("{} ({})", manifest.packages.len(), image.lock().name())),
        ("size", format!("{} MB", bytes / 1_000_000)),
        ("root", image.root.display().to_string()),
        ("vmlinuz", image.kernel.display().to_string()),
        ("modules", image.modules.display().to_string()),
        ("manifest", image.dir.join("manifest.json").display().to_string()),
    ];
    rows.iter().map(|(name, value)| format!("{name:9} {value}\n")).collect()
}
