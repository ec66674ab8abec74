//! The jobs on disk: a file for each, named by its ticket, in a directory that only root can write in. So an outcome is there
//! after a restart of the broker.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::jobs::Job;
use crate::verbs::Ticket;

/// Where they are.
#[derive(Debug, Clone)]
pub struct Kept(PathBuf);

impl Kept {
    /// In `directory`, which is there.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        Self(directory)
    }

    fn path(&self, ticket: &Ticket) -> PathBuf {
        self.0.join(format!("{ticket}.json"))
    }

    /// All that can be read. What cannot is said and left.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn all(&self) -> io::Result<(Vec<Job>, Vec<String>)> {
        let (mut jobs, mut problems) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.0)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match read(&path) {
                Ok(job) => jobs.push(job),
                Err(error) => problems.push(format!("read {}: {error}", path.display())),
            }
        }
        Ok((jobs, problems))
    }

    /// Writes one, whole or not at all.
    ///
    /// # Errors
    /// With the path.
    pub fn put(&self, job: &Job) -> Result<(), String> {
        let (path, new) = (self.path(&job.ticket), self.0.join(format!("{}.new", job.ticket)));
        let write = || -> io::Result<()> {
            let mut file = fs::File::create(&new)?;
            file.write_all(&serde_json::to_vec(job)?)?;
            file.sync_data()?;
            fs::rename(&new, &path)
        };
        write().map_err(|error| format!("write {}: {error}", path.display()))
    }

    /// Removes one.
    ///
    /// # Errors
    /// With the path.
    pub fn remove(&self, ticket: &Ticket) -> Result<(), String> {
        let path = self.path(ticket);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(format!("unlink {}: {error}", path.display()))
            }
            _ => Ok(()),
        }
    }
}

fn read(path: &Path) -> io::Result<Job> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}
