//! Writing: staged beside the target, sealed when all bytes are there, published under the final name by renaming once the disk
//! has them.
//!
//! A file that was not published never has its name, and its staging is removed when the [`Sink`] is dropped.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::checksums::Checksums;
use crate::writeback::{Failure, Writeback};
use crate::{Error, Layout, Result};

/// What is written: one file, or a folder of files that appears as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// The target is a file.
    File,
    /// The target is a folder.
    Folder,
    /// The target is the first of several files, which lie beside it under their own names.
    Files,
}

/// One weight file of the output.
#[derive(Debug, Clone)]
pub struct FilePlan {
    /// Its name within the folder; ignored where the target is the only file.
    pub name: String,
    /// Where its bytes go.
    pub layout: Layout,
}

/// An output being written.
#[derive(Debug)]
pub struct Sink {
    target: PathBuf,
    staging: PathBuf,
    shape: Shape,
    force: bool,
    files: Vec<(PathBuf, Arc<File>, Layout)>,
    writeback: Writeback,
    /// Of what was written to files that have checksums.
    checksums: Checksums,
    last: Option<JoinHandle<std::result::Result<(), Failure>>>,
    published: bool,
    /// Whether what is staged stays when this is dropped.
    kept: bool,
}

impl Sink {
    /// Stages an output of `plans`, with room for `extra` more bytes of small files. Fixed bytes are written at once; the
    /// rest is zero until it is written.
    ///
    /// # Errors
    /// Before anything is created: the target exists and `force` is false, its folder is missing, or the disk has too little
    /// room.
    pub fn create(target: &Path, shape: Shape, plans: Vec<FilePlan>, extra: u64, force: bool) -> Result<Self> {
        let (parent, name) = split(target)?;
        check_target(target, shape, force)?;
        for plan in plans.iter().skip(1).filter(|_| shape == Shape::Files) {
            check_target(&parent.join(&plan.name), shape, force)?;
        }
        let needed = plans.iter().map(|plan| plan.layout.bytes).sum::<u64>() + extra;
        check_room(target, &parent, needed)?;
        let staging = parent.join(format!(".{name}.partial-{}", std::process::id()));
        remove(&staging).map_err(Error::io(&staging, "remove an old partial output"))?;
        let mut sink = Self {
            target: target.to_owned(),
            staging,
            shape,
            force,
            files: Vec::new(),
            writeback: Writeback::default(),
            checksums: Checksums::default(),
            last: None,
            published: false,
            kept: false,
        };
        if shape != Shape::File {
            fs::create_dir(&sink.staging).map_err(Error::io(&sink.staging, "create the folder"))?;
        }
        for plan in plans {
            let path = match shape {
                Shape::File => sink.staging.clone(),
                Shape::Folder | Shape::Files => sink.staging.join(&plan.name),
            };
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)
                .map_err(Error::io(&path, "create"))?;
            file.set_len(plan.layout.bytes).map_err(Error::io(&path, "write"))?;
            for (offset, bytes) in &plan.layout.fixed {
                write_all_at(&file, bytes, *offset).map_err(Error::io(&path, "write"))?;
                if !plan.layout.checksums.is_empty() {
                    sink.checksums.add(sink.files.len(), *offset, bytes);
                }
            }
            sink.files.push((path, Arc::new(file), plan.layout));
        }
        Ok(sink)
    }

    /// Stages a file beside `target` under a name that is always the same, and leaves it there when this is dropped, until it is
    /// [discarded](Sink::discard): for work that a later run goes on with. If an earlier run left one of this layout, it is
    /// taken up, and the answer is true.
    ///
    /// # Errors
    /// The folder is missing, or the disk has too little room.
    pub fn resume(target: &Path, layout: Layout) -> Result<(Self, bool)> {
        let (parent, name) = split(target)?;
        let staging = parent.join(format!(".{name}.partial"));
        let left = left_over(&staging, &layout);
        if left.is_none() {
            remove(&staging).map_err(Error::io(&staging, "remove an old partial output"))?;
            check_room(target, &parent, layout.bytes)?;
        }
        let taken_up = left.is_some();
        let file = match left {
            Some(file) => file,
            None => OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&staging)
                .map_err(Error::io(&staging, "create"))?,
        };
        file.set_len(layout.bytes).map_err(Error::io(&staging, "write"))?;
        for (offset, bytes) in &layout.fixed {
            write_all_at(&file, bytes, *offset).map_err(Error::io(&staging, "write"))?;
        }
        let sink = Self {
            target: target.to_owned(),
            staging: staging.clone(),
            shape: Shape::File,
            force: false,
            files: vec![(staging, Arc::new(file), layout)],
            writeback: Writeback::default(),
            checksums: Checksums::default(),
            last: None,
            published: false,
            kept: true,
        };
        Ok((sink, taken_up))
    }

    /// Waits until the disk has what was written so far.
    ///
    /// # Errors
    /// A write that fails.
    pub fn sync(&self) -> Result<()> {
        self.files.iter().try_for_each(|(path, file, _)| file.sync_data().map_err(Error::io(path, "write")))
    }

    /// Removes what is staged.
    pub fn discard(mut self) {
        self.kept = false;
    }

    /// Whether such an output could be created here, found out before long work.
    ///
    /// # Errors
    /// Those of [`Sink::create`], but for room.
    pub fn check(target: &Path, shape: Shape, force: bool) -> Result<()> {
        check_target(target, shape, force)
    }

    /// Where the output is staged: a file, the first of several, or a folder.
    pub fn staging(&self) -> &Path {
        match (self.shape, self.files.first()) {
            (Shape::Files, Some((path, ..))) => path,
            _ => &self.staging,
        }
    }

    /// Writes `bytes` into the span of `tensor` of weight file `file`, from `offset` within the span. May be called from
    /// several threads; each byte must be written by one of them only.
    pub fn write_at(&self, file: usize, tensor: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let (path, handle, layout) = &self.files[file];
        let span = &layout.spans[tensor];
        assert!(
            offset.checked_add(bytes.len() as u64).is_some_and(|end| end <= span.end - span.start),
            "a write past the end of a tensor's span"
        );
        write_all_at(handle, bytes, span.start + offset).map_err(Error::io(path, "write"))?;
        if !layout.checksums.is_empty() {
            self.checksums.add(file, span.start + offset, bytes);
        }
        self.writeback.wrote(file, handle, bytes.len() as u64);
        Ok(())
    }

    /// Adds a small file to a folder, creating folders on its way.
    pub fn put(&self, name: &Path, bytes: &[u8]) -> Result<()> {
        let path = self.small_file(name)?;
        fs::write(&path, bytes).map_err(Error::io(&path, "write"))?;
        File::open(&path).and_then(|file| file.sync_all()).map_err(Error::io(&path, "write"))
    }

    /// Adds a copy of a file to a folder. The copy's content is that of the file a symbolic link points to.
    pub fn copy(&self, name: &Path, from: &Path) -> Result<()> {
        let mut input = File::open(from).map_err(Error::io(from, "open"))?;
        let path = self.small_file(name)?;
        // Not `fs::copy`, which would copy a read-only permission too.
        let mut output = File::create(&path).map_err(Error::io(&path, "create"))?;
        io::copy(&mut input, &mut output).map_err(Error::io(&path, "write"))?;
        output.sync_all().map_err(Error::io(&path, "write"))
    }

    fn small_file(&self, name: &Path) -> Result<PathBuf> {
        assert!(self.shape == Shape::Folder, "only a folder takes more files");
        assert!(
            name.components().all(|part| matches!(part, std::path::Component::Normal(_))),
            "a name within the folder"
        );
        let path = self.staging.join(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(Error::io(folder, "create the folder"))?;
        }
        Ok(path)
    }

    /// Writes what depends on the data, and begins to force everything to the disk, for which only [`Sink::publish`] waits.
    /// After this the staged output is whole and can be opened for checking.
    pub fn seal(&mut self) -> Result<()> {
        for (index, (path, file, layout)) in self.files.iter().enumerate() {
            for checksum in &layout.checksums {
                let sum = match self.checksums.of(index, &checksum.of) {
                    Some(sum) => sum,
                    // Written by an earlier run, or not at all and therefore zero.
                    None => crc32(file, checksum.of.clone()).map_err(Error::io(path, "read back"))?,
                };
                for &at in &checksum.at {
                    write_all_at(file, &sum.to_le_bytes(), at).map_err(Error::io(path, "write"))?;
                }
            }
        }
        let begun = std::mem::take(&mut self.writeback);
        let files: Vec<Arc<File>> = self.files.iter().map(|(_, file, _)| file.clone()).collect();
        let sync = move || {
            begun.finish()?;
            files.iter().enumerate().try_for_each(|(index, file)| file.sync_all().map_err(|e| (index, e)))
        };
        let thread = std::thread::Builder::new().name("sync".to_owned()).spawn(sync);
        self.last = Some(thread.map_err(Error::io(&self.staging, "start a thread that syncs"))?);
        Ok(())
    }

    /// Waits until the disk has everything.
    fn settle(&mut self) -> Result<()> {
        if let Some(last) = self.last.take() {
            let synced = last.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            synced.map_err(|(file, e)| Error::io(&self.files[file].0, "write")(e))?;
        }
        if self.shape != Shape::File {
            sync_folder(&self.staging)?;
        }
        Ok(())
    }

    /// Gives the output its name, once the disk has all of it. An existing output is replaced in one step if that was asked for, else it is kept and this
    /// is an error, also if it appeared meanwhile.
    pub fn publish(mut self) -> Result<()> {
        self.settle()?;
        let (parent, _) = split(&self.target)?;
        // What is named by another file gets its name before that one.
        let beside = self.files.iter().skip(1).filter(|_| self.shape == Shape::Files);
        let beside = beside.filter_map(|(from, ..)| Some((from.as_path(), parent.join(from.file_name()?))));
        let mut named: Vec<PathBuf> = Vec::new();
        for (from, to) in beside.chain([(self.staging(), self.target.clone())]) {
            if let Err(e) = self.rename(from, &to) {
                // What nothing names yet is taken back; the error that led here matters more than one of this.
                named.iter().filter(|_| !self.force).for_each(|path| drop(remove(path)));
                return Err(e);
            }
            named.push(to);
        }
        if self.shape == Shape::Files {
            let _ = remove(&self.staging);
        }
        self.published = true;
        sync_folder(&parent)
    }

    /// Gives what is staged its name.
    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let renamed = if self.force && exists(to) { replace(from, to, self.shape) } else { rename_new(from, to) };
        renamed.map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => Error::OutputExists { file: to.to_owned() },
            _ => Error::io(to, "give the output its name")(e),
        })
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if !self.published && !self.kept {
            // Nothing can be done about a failure here, and the error that led here matters more.
            let _ = remove(&self.staging);
        }
    }
}

/// A file that an earlier run left, if it has this layout.
fn left_over(path: &Path, layout: &Layout) -> Option<File> {
    let is_file = path.symlink_metadata().is_ok_and(|meta| meta.is_file() && meta.len() == layout.bytes);
    let file = OpenOptions::new().read(true).write(true).open(path).ok().filter(|_| is_file)?;
    let same = layout.fixed.iter().all(|(offset, bytes)| {
        let mut found = vec![0; bytes.len()];
        read_exact_at(&file, &mut found, *offset).is_ok() && found == *bytes
    });
    same.then_some(file)
}

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(not(unix))]
fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = file;
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(bytes)
}

/// The folder and the name of a target.
fn split(target: &Path) -> Result<(PathBuf, String)> {
    let name = target.file_name().ok_or_else(|| {
        Error::malformed(target, None, "an output without a name", "a path that ends in a name", "Choose one with -o")
    })?;
    let parent = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    Ok((parent, name.to_string_lossy().into_owned()))
}

fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn check_target(target: &Path, shape: Shape, force: bool) -> Result<()> {
    let (parent, _) = split(target)?;
    if !parent.is_dir() {
        return Err(Error::FolderMissing { file: target.to_owned(), folder: parent });
    }
    if !exists(target) {
        return Ok(());
    }
    if !force {
        return Err(Error::OutputExists { file: target.to_owned() });
    }
    let refuse = |found: &str, expected: &str| {
        Err(Error::NotReplaceable { file: target.to_owned(), found: found.to_owned(), expected: expected.to_owned() })
    };
    match (shape, target.is_dir()) {
        (Shape::File | Shape::Files, true) => refuse("a folder", "a file, since the output is a file"),
        (Shape::Folder, false) => refuse("a file", "a folder, since the output is a folder"),
        (Shape::Folder, true) if !looks_like_a_model(target) => refuse(
            "a folder that holds something else",
            "a model folder (config.json or weights in it) or an empty one",
        ),
        _ => Ok(()),
    }
}

/// `--force` deletes what it replaces, so it must not be pointed at a home folder by mistake.
fn looks_like_a_model(folder: &Path) -> bool {
    let Ok(mut entries) = fs::read_dir(folder) else { return false };
    let weights = |path: &Path| path.extension().is_some_and(|ext| ext == "safetensors" || ext == "gguf");
    folder.join("config.json").exists()
        || entries.next().is_none()
        || fs::read_dir(folder).is_ok_and(|mut all| all.any(|entry| entry.is_ok_and(|entry| weights(&entry.path()))))
}

fn check_room(target: &Path, parent: &Path, needed: u64) -> Result<()> {
    #[cfg(unix)]
    {
        let stat = rustix::fs::statvfs(parent).map_err(|e| Error::io(parent, "ask for free space")(e.into()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free < needed {
            return Err(Error::DiskFull { file: target.to_owned(), needed, free });
        }
    }
    #[cfg(not(unix))]
    let _ = (target, parent, needed);
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    let gone = match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match gone {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Renames without replacing, where the system can; else after a look.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::NOTSUP) => {}
            other => return Ok(other?),
        }
    }
    if exists(to) {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    fs::rename(from, to)
}

/// Puts `from` in the place of `to`. A folder cannot be renamed over another, so the two are exchanged and the old one,
/// which then has the staging's name, is removed.
fn replace(from: &Path, to: &Path, shape: Shape) -> io::Result<()> {
    if shape != Shape::Folder {
        return fs::rename(from, to);
    }
    #[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE) {
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::NOTSUP) => {}
            Err(e) => return Err(e.into()),
            Ok(()) => return remove(from),
        }
    }
    let mut aside = from.as_os_str().to_owned();
    aside.push(".old");
    let aside = PathBuf::from(aside);
    fs::rename(to, &aside)?;
    if let Err(e) = fs::rename(from, to) {
        fs::rename(&aside, to)?;
        return Err(e);
    }
    remove(&aside)
}

fn sync_folder(folder: &Path) -> Result<()> {
    #[cfg(unix)]
    File::open(folder).and_then(|handle| handle.sync_all()).map_err(Error::io(folder, "write"))?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

/// The most bytes of one write. Linux takes page cache for a long write in large runs of pages, and a virtual machine that gives free memory
/// back to its host gives just those away: each must then be fetched anew, which makes a long write up to five times as slow.
const PIECE: usize = 128 << 10;

fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    bytes.chunks(PIECE).zip((offset..).step_by(PIECE)).try_for_each(|(piece, at)| write_piece(file, piece, at))
}

#[cfg(unix)]
fn write_piece(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(not(unix))]
fn write_piece(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_write(file, bytes, offset)?;
        bytes = &bytes[n..];
        offset += n as u64;
    }
    Ok(())
}

fn crc32(file: &File, range: std::ops::Range<u64>) -> io::Result<u32> {
    use io::{Read, Seek, SeekFrom};
    let mut file = file;
    file.seek(SeekFrom::Start(range.start))?;
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut left = range.end - range.start;
    while left > 0 {
        let n = left.min(buffer.len() as u64) as usize;
        file.read_exact(&mut buffer[..n])?;
        hasher.update(&buffer[..n]);
        left -= n as u64;
    }
    Ok(hasher.finalize())
}
