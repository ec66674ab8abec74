//! `cargo xtask image`: makes sure that a guest image is there, and says where and of what.

use clap::Args;
use vm_tests::image::{self, Image, Request, Suite};

use crate::left4me;

/// Builds the image that guests boot from, unless it exists.
///
/// Makes a guest's root file system from Debian's packages, without root, in about a minute, and keeps it until
/// its inputs change. Other commands do this themselves when they need an image.
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

    /// Mirror for packages, in place of Debian's servers
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

/// Builds the image if need be and prints what it is.
pub(crate) async fn run(args: &ImageArgs) -> anyhow::Result<()> {
    let image = image::ensure(&args.request(), &left4me::workspace()?.cache()?).await?;
    if args.verify {
        image.verify()?;
    }
    print!("{}", describe(&image, image.size()?));
    Ok(())
}

fn describe(image: &Image, bytes: u64) -> String {
    let manifest = &image.manifest;
    let version = |name: &str| manifest.packages.get(name).map_or("none", String::as_str);
    let rows = [
        ("suite", manifest.suite.to_string()),
        ("kernel", manifest.kernel_version.clone()),
        ("systemd", version("systemd").to_owned()),
        ("packages", manifest.packages.len().to_string()),
        ("size", format!("{} MB", bytes / 1_000_000)),
        ("root", image.root.display().to_string()),
        ("vmlinuz", image.kernel.display().to_string()),
        ("modules", image.modules.display().to_string()),
        ("manifest", image.dir.join("manifest.json").display().to_string()),
    ];
    rows.iter().map(|(name, value)| format!("{name:9} {value}\n")).collect()
}
