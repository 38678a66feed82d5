//! One open kernel map: typed reads, and the only functions that write one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::Error;
use super::mmap::Mmap;
use super::pod::{Pod, bytes_of, bytes_of_mut, read};
use super::sys::{self, MapInfo};

/// Entries read or written by one batch.
const BATCH: u32 = 4_096;
/// Most batches of one walk: bounds a walk over a table that changes meanwhile.
const MAX_BATCHES: usize = 1 << 16;

/// An open map.
#[derive(Debug)]
pub(super) struct Map {
    pub(super) name: &'static str,
    pub(super) fd: OwnedFd,
    pub(super) info: MapInfo,
    /// Its memory, where it is an array made for that.
    pub(super) memory: Option<Mmap>,
}

impl Map {
    /// Takes over `fd`; maps its memory if the map allows that.
    pub(super) fn new(name: &'static str, fd: OwnedFd) -> Result<Self, Error> {
        let failed = |source| Error::kernel(format!("map `{name}`"), source);
        let info = sys::map_info(fd.as_fd()).map_err(failed)?;
        let memory = if info.flags & sys::F_MMAPABLE == 0 {
            None
        } else {
            let mapped = Mmap::new(fd.as_fd(), info.value_size, info.max_entries, true);
            Some(mapped.map_err(failed)?)
        };
        Ok(Self {
            name,
            fd,
            info,
            memory,
        })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn failed(&self, doing: &str) -> impl Fn(io::Error) -> Error {
        let text = format!("{doing} map `{}`", self.name);
        move |source| Error::kernel(text.clone(), source)
    }

    /// The memory of a map that must be made for it.
    pub(super) fn memory(&self) -> Result<&Mmap, Error> {
        self.memory
            .as_ref()
            .ok_or_else(|| Error::Corrupt(format!("map `{}` cannot be mapped", self.name)))
    }

    /// Reads the value under `key`.
    pub(super) fn get<K: Pod, V: Pod>(&self, key: &K) -> Result<Option<V>, Error> {
        let mut value = super::pod::zeroed::<V>();
        self.check_sizes::<K, V>()?;
        sys::lookup(self.fd(), bytes_of(key), bytes_of_mut(&mut value))
            .map(|found| found.then_some(value))
            .map_err(self.failed("reading"))
    }

    /// Reads element `index` of an array.
    pub(super) fn at<V: Pod>(&self, index: u32) -> Result<V, Error> {
        self.get(&index)?
            .ok_or_else(|| Error::Corrupt(format!("map `{}` has no element {index}", self.name)))
    }

    /// Reads the first `count` elements of an array of `V`.
    pub(super) fn array<V: Pod>(&self, count: u32) -> Result<Vec<V>, Error> {
        let mut values = Vec::with_capacity(count as usize);
        self.walk::<u32, V>(|_, value| values.push(*value))?;
        values.truncate(count as usize);
        if values.len() == count as usize {
            Ok(values)
        } else {
            Err(Error::Corrupt(format!(
                "map `{}` has {} elements, not {count}",
                self.name,
                values.len()
            )))
        }
    }

    /// Reads one value per possible CPU.
    pub(super) fn per_cpu<V: Pod>(&self, index: u32, cpus: usize) -> Result<Vec<V>, Error> {
        let stride = size_of::<V>().next_multiple_of(8);
        let mut bytes = vec![0; stride * cpus];
        self.check_sizes::<u32, V>()?;
        sys::lookup(self.fd(), bytes_of(&index), &mut bytes).map_err(self.failed("reading"))?;
        Ok(bytes.chunks_exact(stride).filter_map(read).collect())
    }

    /// Stores `value` under `key`.
    pub(super) fn set<K: Pod, V: Pod>(&self, key: &K, value: &V) -> Result<(), Error> {
        self.check_sizes::<K, V>()?;
        sys::update(self.fd(), bytes_of(key), bytes_of(value), 0).map_err(self.failed("writing"))
    }

    /// Stores `value` under `key` and returns whether the key is new.
    pub(super) fn put<K: Pod, V: Pod>(&self, key: &K, value: &V) -> Result<bool, Error> {
        if self.insert(key, value)? {
            return Ok(true);
        }
        sys::update(self.fd(), bytes_of(key), bytes_of(value), sys::EXIST)
            .map(|()| false)
            .map_err(self.failed("writing"))
    }

    /// Inserts `key` unless it is there; returns whether it was inserted.
    pub(super) fn insert<K: Pod, V: Pod>(&self, key: &K, value: &V) -> Result<bool, Error> {
        self.check_sizes::<K, V>()?;
        match sys::update(self.fd(), bytes_of(key), bytes_of(value), sys::NOEXIST) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(self.failed("writing")(error)),
        }
    }

    /// Deletes `key`; returns whether it was there.
    pub(super) fn remove<K: Pod>(&self, key: &K) -> Result<bool, Error> {
        self.check_key::<K>()?;
        sys::delete(self.fd(), bytes_of(key)).map_err(self.failed("writing"))
    }

    /// Visits every entry. Entries that come or go meanwhile may be missed or seen twice.
    pub(super) fn walk<K: Pod, V: Pod>(&self, mut visit: impl FnMut(&K, &V)) -> Result<(), Error> {
        self.check_sizes::<K, V>()?;
        let (key_size, value_size) = (size_of::<K>(), size_of::<V>());
        let mut position = None;
        let mut count = BATCH.min(self.info.max_entries.max(1));
        for _ in 0..MAX_BATCHES {
            let mut keys = vec![0; key_size * count as usize];
            let mut values = vec![0; value_size * count as usize];
            let read_entries = sys::lookup_batch(
                self.fd(),
                &mut position,
                key_size.max(4),
                &mut keys,
                &mut values,
                count,
            );
            match read_entries {
                Ok((entries, end)) => {
                    for (key, value) in keys
                        .chunks_exact(key_size)
                        .zip(values.chunks_exact(value_size))
                        .take(entries as usize)
                    {
                        if let (Some(key), Some(value)) = (read(key), read(value)) {
                            visit(&key, &value);
                        }
                    }
                    if end {
                        return Ok(());
                    }
                }
                // A hash bucket holds more entries than fit: ask for more at once.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && count < 1 << 20 => {
                    count *= 2;
                }
                Err(error) => return Err(self.failed("reading")(error)),
            }
        }
        Err(Error::Corrupt(format!(
            "map `{}` did not end after {MAX_BATCHES} batches",
            self.name
        )))
    }

    /// A wrong size would make the kernel read or write beyond a buffer.
    fn check_sizes<K: Pod, V: Pod>(&self) -> Result<(), Error> {
        self.check_key::<K>()?;
        if size_of::<V>() == self.info.value_size as usize {
            Ok(())
        } else {
            Err(Error::Corrupt(format!(
                "map `{}` has values of {} bytes, not {}",
                self.name,
                self.info.value_size,
                size_of::<V>()
            )))
        }
    }

    fn check_key<K: Pod>(&self) -> Result<(), Error> {
        if size_of::<K>() == self.info.key_size as usize {
            Ok(())
        } else {
            Err(Error::Corrupt(format!(
                "map `{}` has keys of {} bytes, not {}",
                self.name,
                self.info.key_size,
                size_of::<K>()
            )))
        }
    }
}
