//! A folder of lease files as the store, for one machine or for several that share the folder. It needs no server.
//!
//! `<folder>/config` and `<folder>/subnets/<key>` hold flannel's values, so `cat` and an editor are the tools.
//! `<folder>/.ledger.json` holds what a file cannot: revisions, history and when a key expires. A modification time would not
//! do: it cannot tell a reservation from a lease, and copying a folder changes it. Every call takes `<folder>/.lock`, brings
//! the ledger up to date with the files, and only then does its work.
//!
//! The ledger is written before a file appears or changes, and after a file is removed: whoever is killed in between leaves a
//! claim that did not happen or a deletion that did, never a lease without an end.
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, ErrorKind, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    unistd::Uid,
};
use tokio::time::Instant;

use super::{
    Batch, Follow, Origin, Revision, Snapshot, Store, StoreError, Written,
    ledger::{Ledger, Millis},
};

/// How often a follower looks. An agent sees a new peer at most this late.
const POLL: Duration = Duration::from_millis(200);
/// How long a call waits for the lock, which nobody holds for longer than it takes to read and write some files.
const PATIENCE: Duration = Duration::from_secs(5);
/// The pause between two tries to take the lock.
const TRY: Duration = Duration::from_millis(10);

/// A folder of lease files. Several agents may use one folder at the same time.
///
/// Expiry goes by the wall clock: hosts that share a folder need clocks that agree within the lease's renewal margin.
#[derive(Clone, Debug)]
pub struct DirStore {
    folder: PathBuf,
}

impl DirStore {
    /// The folder is made at the first use. Whether other hosts may use it too is for whoever acquires leases to
    /// say: [`crate::store::acquire::refuse_other_hosts`].
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Runs `work` on a ledger that agrees with the files, while nobody else can. This is cancel-safe.
    async fn locked<T>(&self, work: impl FnOnce(&mut Books) -> io::Result<T>) -> Result<T, StoreError> {
        self.locked_by(Instant::now() + PATIENCE, work).await
    }

    /// Does the same for a caller that has waited already, and does not wait longer than `deadline`.
    async fn locked_by<T>(
        &self,
        deadline: Instant,
        work: impl FnOnce(&mut Books) -> io::Result<T>,
    ) -> Result<T, StoreError> {
        let _lock = loop {
            match self.try_lock().map_err(|error| self.failed(&error))? {
                Some(lock) => break lock,
                None if Instant::now() < deadline => tokio::time::sleep(TRY).await,
                None => {
                    let lock = self.lock();
                    let lock = lock.display();
                    let detail = format!(
                        "{lock} is held by another process for more than {} s: see which (fuser {lock})",
                        PATIENCE.as_secs()
                    );
                    return Err(StoreError::Unavailable { store: self.name(), detail });
                }
            }
        };
        let run = || work(&mut Books::open(&self.folder)?);
        run().map_err(|error| self.failed(&error))
    }

    /// Takes the lock, or returns `None` while another process has it. It never waits, because the agent's thread has other
    /// work. Whoever can open the file can hold the lock for ever, so only its owner may open it.
    fn try_lock(&self) -> io::Result<Option<Flock<File>>> {
        fs::create_dir_all(self.folder.join("subnets"))?;
        let lock = File::options().create(true).truncate(false).write(true).mode(0o600).open(self.lock())?;
        let found = lock.metadata()?;
        if found.mode() & 0o077 != 0 && found.uid() == Uid::effective().as_raw() {
            lock.set_permissions(fs::Permissions::from_mode(0o600))?;
        }
        match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, error)) => Err(error.into()),
        }
    }

    fn lock(&self) -> PathBuf {
        self.folder.join(".lock")
    }

    fn failed(&self, error: &io::Error) -> StoreError {
        match error.kind() {
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => StoreError::Refused {
                store: self.name(),
                detail: format!("{error}: give the agent write access to the folder"),
            },
            _ => StoreError::Unavailable { store: self.name(), detail: error.to_string() },
        }
    }
}

/// The ledger and the files, while the lock is held.
struct Books<'a> {
    folder: &'a Path,
    ledger: Ledger,
}

impl<'a> Books<'a> {
    fn open(folder: &'a Path) -> io::Result<Self> {
        let path = folder.join(".ledger.json");
        let (ledger, known) = match fs::read(&path) {
            Ok(text) => {
                let bad = |error| {
                    io::Error::other(format!(
                        "{} is damaged ({error}): remove it, and every lease becomes a reservation",
                        path.display()
                    ))
                };
                (serde_json::from_slice(&text).map_err(bad)?, true)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => (Ledger::new(rand::random()), false),
            Err(error) => return Err(error),
        };
        let mut books = Self { folder, ledger };
        if books.agree()? || !known {
            books.save()?;
        }
        Ok(books)
    }

    /// Takes over what was done to the files by hand, and removes what has expired. Returns whether anything changed.
    fn agree(&mut self) -> io::Result<bool> {
        let files = self.files()?;
        let gone: Vec<String> = self
            .ledger
            .values()
            .filter(|(key, _)| !files.contains_key(*key))
            .map(|(key, _)| key.to_owned())
            .collect();
        let wanted: BTreeMap<_, _> = self.ledger.values().collect();
        let new: Vec<_> =
            files.iter().filter(|(key, value)| wanted.get(key.as_str()) != Some(value)).collect();
        let new: Vec<_> = new.into_iter().map(|(key, value)| (key, value, self.ledger.expiry(key))).collect();
        let changed = !gone.is_empty() || !new.is_empty();
        self.ledger.delete(gone);
        // A file that an operator made is a reservation. One that an operator altered keeps its lifetime.
        for (key, value, expires) in new {
            self.ledger.put(key, value.clone(), expires);
        }
        let expired = self.ledger.expire(now());
        for key in &expired {
            remove(&self.path(key))?;
        }
        Ok(changed || !expired.is_empty())
    }

    fn files(&self) -> io::Result<BTreeMap<String, Bytes>> {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(self.folder.join("subnets"))? {
            let entry = entry?;
            // Hidden files belong to an editor, and a name that is not text is no key.
            let Some(key) =
                entry.file_name().to_str().filter(|name| !name.starts_with('.')).map(str::to_owned)
            else {
                continue;
            };
            match fs::read(entry.path()) {
                Ok(value) => drop(files.insert(key, value.into())),
                // It is a folder, or a file that was removed by hand since it was listed.
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::IsADirectory) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(files)
    }

    fn put(
        &mut self,
        key: &str,
        value: &Bytes,
        edit: impl FnOnce(&mut Ledger) -> Written,
    ) -> io::Result<Written> {
        let written = edit(&mut self.ledger);
        if written != Written::Lost {
            self.save()?;
            self.write(&self.path(key), value)?;
        }
        Ok(written)
    }

    fn release(&mut self, key: &str, modified: Revision) -> io::Result<Written> {
        let written = self.ledger.release(key, modified);
        if written != Written::Lost {
            remove(&self.path(key))?;
            self.save()?;
        }
        Ok(written)
    }

    fn save(&self) -> io::Result<()> {
        self.write(&self.folder.join(".ledger.json"), &serde_json::to_vec(&self.ledger)?)
    }

    /// Writes a file by rename, so that no reader sees half of it. One name is enough for the draft, because the lock is held.
    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let draft = self.folder.join(".draft");
        File::create(&draft)?.write_all(content)?;
        fs::rename(draft, path)
    }

    fn path(&self, key: &str) -> PathBuf {
        self.folder.join("subnets").join(key)
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn now() -> Millis {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    millis(since.unwrap_or_default())
}

fn millis(time: Duration) -> Millis {
    Millis::try_from(time.as_millis()).unwrap_or(Millis::MAX)
}

fn expiry(time_to_live: Option<Duration>) -> Option<Millis> {
    time_to_live.map(|time| now().saturating_add(millis(time)))
}

impl Store for DirStore {
    type Follow = DirFollow;

    fn name(&self) -> String {
        format!("folder {}", self.folder.display())
    }

    async fn config(&mut self) -> Result<Option<Bytes>, StoreError> {
        self.locked(|books| match fs::read(books.folder.join("config")) {
            Ok(text) => Ok(Some(text.into())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        })
        .await
    }

    async fn set_config(&mut self, value: Bytes) -> Result<(), StoreError> {
        self.locked(|books| books.write(&books.folder.join("config"), &value)).await
    }

    async fn origin(&mut self) -> Result<Origin, StoreError> {
        Ok(self.snapshot().await?.origin())
    }

    async fn snapshot(&mut self) -> Result<Snapshot, StoreError> {
        self.locked(|books| Ok(books.ledger.snapshot())).await
    }

    async fn follow(&mut self, revision: Revision) -> Result<DirFollow, StoreError> {
        self.locked(|_| Ok(())).await?;
        let store = self.clone();
        Ok(DirFollow { store, revision, waiting: None })
    }

    async fn claim(
        &mut self,
        key: &str,
        value: Bytes,
        time_to_live: Option<Duration>,
    ) -> Result<Written, StoreError> {
        self.locked(|books| {
            books.put(key, &value, |ledger| ledger.claim(key, value.clone(), expiry(time_to_live)))
        })
        .await
    }

    async fn renew(
        &mut self,
        key: &str,
        value: Bytes,
        modified: Revision,
        time_to_live: Option<Duration>,
    ) -> Result<Written, StoreError> {
        self.locked(|books| {
            books.put(key, &value, |ledger| ledger.renew(key, value.clone(), modified, expiry(time_to_live)))
        })
        .await
    }

    async fn release(&mut self, key: &str, modified: Revision) -> Result<Written, StoreError> {
        self.locked(|books| books.release(key, modified)).await
    }
}

/// The watch of a [`DirStore`], which looks every 200 ms.
#[derive(Debug)]
pub struct DirFollow {
    store: DirStore,
    revision: Revision,
    /// Since when this watch waits for the lock. The time is kept here because some callers drop the call at every beat of
    /// their own, and must hear of a lock that is never free, too.
    waiting: Option<Instant>,
}

impl Follow for DirFollow {
    async fn next(&mut self) -> Result<Batch, StoreError> {
        loop {
            let since = *self.waiting.get_or_insert_with(Instant::now);
            let look = |books: &mut Books| Ok(books.ledger.after(self.revision));
            let found = self.store.locked_by(since + PATIENCE, look).await;
            self.waiting = None;
            let behind = |oldest| StoreError::Behind { store: self.store.name(), oldest };
            if let Some(batch) = found?.map_err(behind)? {
                self.revision = batch.revision;
                return Ok(batch);
            }
            tokio::time::sleep(POLL).await;
        }
    }
}
