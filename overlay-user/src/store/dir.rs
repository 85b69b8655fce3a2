//! A folder of lease files as the store, for one machine or for several that share the folder. It needs no server.
//!
//! `<folder>/config` and `<folder>/subnets/<key>` hold flannel's values, so `cat` and an editor are the tools.
//! `<folder>/.ledger.json` holds what a file cannot: revisions, history, how long a key lives and how often it was prolonged. A
//! modification time would not do: it cannot tell a reservation from a lease, and copying a folder changes it. Every call takes
//! `<folder>/.lock`, brings the ledger up to date with the files, and only then does its work.
//!
//! Which leases have ended is for each agent to see by itself (`observed.rs`): the clocks of the hosts that share a folder end
//! nothing.
//!
//! The ledger is written before a file appears or changes, and after a file is removed: whoever is killed in between leaves a
//! claim that did not happen or a deletion that did, never a lease without an end.
mod books;

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    unistd::Uid,
};
use tokio::time::Instant;

use self::books::Books;
use super::{
    Batch, Follow, Origin, Revision, Snapshot, Store, StoreError, Tally, Written,
    ledger::{Millis, Term},
    observed::Observed,
};

/// How often a follower looks. An agent sees a new peer at most this late.
const POLL: Duration = Duration::from_millis(200);
/// How long a call waits for the lock, which nobody holds for longer than it takes to read and write some files.
const PATIENCE: Duration = Duration::from_secs(5);
/// The pause between two tries to take the lock.
const TRY: Duration = Duration::from_millis(10);

/// A folder of lease files. Several agents may use one folder at the same time. A handle and its clones are one pair of eyes.
#[derive(Clone, Debug)]
pub struct DirStore {
    folder: PathBuf,
    observed: Arc<Mutex<Observed>>,
    clock: fn() -> SystemTime,
}

impl DirStore {
    /// The folder is made at the first use. Whether other hosts may use it too is for whoever acquires leases to
    /// say: [`crate::store::acquire::refuse_other_hosts`].
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), observed: Arc::default(), clock: SystemTime::now }
    }

    /// Has another time of day than the system's, for tests.
    pub fn with_clock(self, clock: fn() -> SystemTime) -> Self {
        Self { clock, ..self }
    }

    fn observed(&self) -> MutexGuard<'_, Observed> {
        self.observed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long a key lives that is written now.
    fn term(&self, time_to_live: Option<Duration>) -> Option<Term> {
        let life = time_to_live.map(millis)?;
        Some(Term { expires: self.now().saturating_add(life), life })
    }

    fn now(&self) -> Millis {
        millis((self.clock)().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
    }

    /// Runs `work` on a ledger that agrees with the files, while nobody else can. This is cancel-safe.
    async fn locked<T>(&self, work: impl FnOnce(&mut Books) -> io::Result<T>) -> Result<T, StoreError> {
        let deadline = Instant::now() + PATIENCE;
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
        let run = || {
            let mut books = Books::open(&self.folder)?;
            let ended = self.observed().look(&books.ledger, Instant::now(), self.now());
            books.end(ended)?;
            work(&mut books)
        };
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

fn millis(time: Duration) -> Millis {
    Millis::try_from(time.as_millis()).unwrap_or(Millis::MAX)
}

impl Store for DirStore {
    type Follow = DirFollow;

    fn name(&self) -> String {
        format!("folder {}", self.folder.display())
    }

    fn remark(&self) -> Option<String> {
        self.observed().remark()
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

    async fn tally(&mut self, keys: &[&str]) -> Result<Tally, StoreError> {
        self.locked(|books| Ok(books.ledger.tally(keys))).await
    }

    async fn follow(&mut self, revision: Revision) -> Result<DirFollow, StoreError> {
        self.locked(|_| Ok(())).await?;
        let store = self.clone();
        Ok(DirFollow { store, revision })
    }

    async fn claim(
        &mut self,
        key: &str,
        value: Bytes,
        time_to_live: Option<Duration>,
    ) -> Result<Written, StoreError> {
        let term = self.term(time_to_live);
        self.locked(|books| books.put(key, &value, |ledger| ledger.claim(key, value.clone(), term))).await
    }

    async fn renew(
        &mut self,
        key: &str,
        value: Bytes,
        modified: Revision,
        time_to_live: Option<Duration>,
    ) -> Result<Written, StoreError> {
        let term = self.term(time_to_live);
        self.locked(|books| books.put(key, &value, |ledger| ledger.renew(key, value.clone(), modified, term)))
            .await
    }

    async fn replace(
        &mut self,
        old: &str,
        modified: Revision,
        key: &str,
        value: Bytes,
        time_to_live: Option<Duration>,
    ) -> Result<Written, StoreError> {
        let term = self.term(time_to_live);
        self.locked(|books| {
            let written = books.ledger.replace(old, modified, key, value.clone(), term);
            if written != Written::Lost {
                books.replaced(old, key, &value)?;
            }
            Ok(written)
        })
        .await
    }

    async fn prolong(
        &mut self,
        key: &str,
        modified: Revision,
        time_to_live: Option<Duration>,
    ) -> Result<Written, StoreError> {
        let term = self.term(time_to_live);
        self.locked(|books| {
            let written = books.ledger.prolong(key, modified, term);
            if written != Written::Lost {
                books.save()?;
            }
            Ok(written)
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
}

impl Follow for DirFollow {
    async fn next(&mut self) -> Result<Batch, StoreError> {
        loop {
            let found = self.store.locked(|books| Ok(books.ledger.after(self.revision))).await?;
            let behind = |oldest| StoreError::Behind { store: self.store.name(), oldest };
            if let Some(batch) = found.map_err(behind)? {
                self.revision = batch.revision;
                return Ok(batch);
            }
            tokio::time::sleep(POLL).await;
        }
    }
}
