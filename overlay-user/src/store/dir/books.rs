//! The ledger and the lease files of a folder, as they are while its lock is held.
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, ErrorKind, Write as _},
    path::{Path, PathBuf},
};

use bytes::Bytes;

use crate::store::{Revision, Written, ledger::Ledger};

/// The ledger and the files, while the lock is held.
pub(super) struct Books<'a> {
    pub(super) folder: &'a Path,
    pub(super) ledger: Ledger,
}

impl<'a> Books<'a> {
    pub(super) fn open(folder: &'a Path) -> io::Result<Self> {
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

    /// Takes over what was done to the files by hand. Returns whether anything changed.
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
        let new: Vec<_> = new.into_iter().map(|(key, value)| (key, value, self.ledger.term(key))).collect();
        let changed = !gone.is_empty() || !new.is_empty();
        self.ledger.delete(gone);
        // A file that an operator made is a reservation. One that an operator altered keeps its lifetime.
        for (key, value, term) in new {
            self.ledger.put(key, value.clone(), term);
        }
        Ok(changed)
    }

    /// Deletes leases that have ended, all at one revision, so that the mass-delete guard sees together what ended together.
    pub(super) fn end(&mut self, keys: Vec<String>) -> io::Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        for key in &keys {
            remove(&self.path(key))?;
        }
        self.ledger.delete(keys);
        self.save()
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

    pub(super) fn put(
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

    pub(super) fn release(&mut self, key: &str, modified: Revision) -> io::Result<Written> {
        let written = self.ledger.release(key, modified);
        if written != Written::Lost {
            remove(&self.path(key))?;
            self.save()?;
        }
        Ok(written)
    }

    /// Carries out what the ledger has taken in already: one file in place of another. Whoever is killed in between leaves a
    /// deletion that did happen and a claim that did not. Renaming the file would leave a lease without an end.
    pub(super) fn replaced(&mut self, old: &str, key: &str, value: &Bytes) -> io::Result<()> {
        remove(&self.path(old))?;
        self.save()?;
        self.write(&self.path(key), value)
    }

    pub(super) fn save(&self) -> io::Result<()> {
        self.write(&self.folder.join(".ledger.json"), &serde_json::to_vec(&self.ledger)?)
    }

    /// Writes a file by rename, so that no reader sees half of it. One name is enough for the draft, because the lock is held.
    pub(super) fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
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
