//! A scan has an end and a size, whoever makes it long or big; and what is left out for that is said.

use std::error::Error;
use std::fs::File;
use std::time::{Duration, Instant};

use holders::report::{Effect, Kind};
use holders::{Query, Report, Verdict};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};

use crate::stage::Stage;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Without time nothing is found, and nothing is claimed.
pub(crate) fn deadline(stage: &Stage) -> Result<()> {
    stage.mount()?;
    let _fixture = stage.plant("cwd")?;
    for (query, blocks) in
        [(Query::new(&stage.merged), None), (Query::new(&stage.merged).after_ebusy(), Some(true))]
    {
        let report = query.deadline(Instant::now()).run()?;
        let verdict = report.verdict();
        assert!(matches!(verdict, Verdict::CutShort { .. }), "{report:#?}");
        assert_eq!(verdict.blocks_umount(), blocks, "{report:#?}");
        assert!(!verdict.line().contains("nothing"), "{}", verdict.line());
        assert!(report.unseen.cut_short.is_some_and(|cut| cut.processes == 0 && cut.left > 1), "{report:#?}");
    }
    let report = Query::new(&stage.merged).deadline(Instant::now() + Duration::from_secs(30)).run()?;
    assert_eq!(report.unseen.cut_short, None, "{report:#?}");
    assert_eq!(report.blockers().len(), 1, "{report:#?}");
    Ok(())
}

/// One process can make a scan long by itself: the clock is asked within it, too.
pub(crate) fn deadline_within_a_process(stage: &Stage) -> Result<()> {
    stage.mount()?;
    let open = Open::several(&File::create(stage.merged.join("file"))?, 60_000)?;
    let ask = |time: Duration| -> Result<(Duration, Report, usize)> {
        let begun = Instant::now();
        let query = Query::new(&stage.merged).among([std::process::id()]).deadline(begun + time);
        let report = query.run()?;
        let listed: usize = report.holders.iter().map(|holder| holder.references.len()).sum();
        let seen = listed + report.unseen.references;
        Ok((begun.elapsed(), report, seen))
    };
    let mut shortest = Duration::MAX;
    for _ in 0..3 {
        let (time, report, seen) = ask(Duration::from_secs(60))?;
        assert_eq!((report.unseen.cut_short, seen), (None, open.0.len()), "{report:#?}");
        shortest = shortest.min(time);
    }
    let (_, report, seen) = ask(shortest / 4)?;
    assert!(seen < open.0.len(), "all {seen} were scanned in a quarter of {shortest:?}");
    assert_eq!(report.unseen.cut_short.map(|cut| cut.left), Some(1), "{report:#?}");
    Ok(())
}

/// Of one process's references of one kind some are listed, and the rest is counted.
pub(crate) fn many_descriptors(stage: &Stage) -> Result<()> {
    const DESCRIPTORS: usize = 1000;
    stage.mount()?;
    let file = File::create(stage.merged.join("file"))?;
    let open = Open::several(&file, DESCRIPTORS - 1)?;
    let report = Query::new(&stage.merged).run()?;
    let listed: usize = report.holders.iter().map(|holder| holder.references.len()).sum();
    assert!((1..=64).contains(&listed), "{listed} are listed");
    assert_eq!(report.unseen.references + listed, DESCRIPTORS, "{report:#?}");
    assert_eq!(report.blockers().len(), 1, "{report:#?}");
    assert_eq!(stage.umount(), Err(Errno::BUSY));
    drop((file, open));
    Ok(stage.umount()?)
}

/// Those that are left out are like others that are listed: nobody hides behind what is harmless.
pub(crate) fn many_harmless_descriptors(stage: &Stage) -> Result<()> {
    // Of the same path, older than the mount, and with lower numbers than what is opened later.
    let older = File::create(stage.merged.join("file"))?;
    let more = Open::several(&older, 300)?;
    stage.mount()?;
    let file = File::create(stage.merged.join("file"))?;
    let report = Query::new(&stage.merged).run()?;
    let held = report.holders.iter().flat_map(|holder| &holder.references);
    let blocking: Vec<_> = held.filter(|held| held.effect == Effect::BlocksUmount).collect();
    assert!(matches!(blocking[..], [one] if matches!(one.kind, Kind::File { .. })), "{report:#?}");
    assert_eq!(report.blockers().len(), 1, "{report:#?}");
    drop((file, older, more));
    Ok(stage.umount()?)
}

/// Descriptors of one file: so many, or as many as there can be.
struct Open(Vec<File>);

/// Room for what else the test opens.
const OTHERS: u64 = 200;

impl Open {
    fn several(file: &File, count: usize) -> Result<Self> {
        let limits = rustix::process::getrlimit(Resource::Nofile);
        let most = limits.maximum.unwrap_or(u64::MAX);
        let wanted = most.min(count as u64 + OTHERS);
        if limits.current.is_some_and(|current| current < wanted) {
            rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), ..limits })?;
        }
        let count = usize::try_from(wanted - OTHERS)?.min(count);
        Ok(Self((0..count).map(|_| file.try_clone()).collect::<std::io::Result<_>>()?))
    }
}
