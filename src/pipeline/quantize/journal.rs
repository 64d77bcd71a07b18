//! What an interrupted run had chosen: a line of JSON for each matrix, in a file beside the staged codes.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Chosen;
use super::matrices::Matrix;
use crate::pipeline::{Error, Result};

/// The first line.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Head {
    version: String,
    /// What tells the work from other work: model, plan, method, text.
    work: String,
}

impl Head {
    fn of(work: &str) -> Self {
        Self { version: env!("CARGO_PKG_VERSION").to_owned(), work: work.to_owned() }
    }
}

/// A matrix whose codes are on the disk.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    step: usize,
    row: u64,
    chosen: Chosen,
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    done: HashMap<(usize, u64), Chosen>,
}

impl Journal {
    /// An error if there is a journal of other work.
    ///
    /// # Errors
    /// That, or a file that cannot be read.
    pub fn check(path: &Path, work: &str) -> Result<()> {
        Self::read(path, &Head::of(work)).map(|_| ())
    }

    /// The bytes of whole lines, and the lines after the first.
    fn read(path: &Path, head: &Head) -> Result<Option<(u64, Vec<Line>)>> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(formats::Error::io(path, "read")(e).into()),
        };
        // A line without an end was being written when the run ended.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let mut lines = text[..whole].lines();
        let Some(first) = lines.next() else { return Ok(None) };
        if serde_json::from_str::<Head>(first).ok().as_ref() != Some(head) {
            return Err(Error::OtherWork { file: path.to_owned() });
        }
        let lines = lines.map_while(|line| serde_json::from_str(line).ok()).collect();
        Ok(Some((whole as u64, lines)))
    }

    /// Opens the journal of this work, and what it says if the codes are still there; begins a new one else.
    ///
    /// # Errors
    /// The journal of other work, or a file that cannot be written.
    pub fn open(path: &Path, work: String, codes: bool) -> Result<Self> {
        let fail = |doing: &'static str| formats::Error::io(path, doing);
        let head = Head::of(&work);
        let known = Self::read(path, &head)?.filter(|_| codes);
        let goes_on = known.is_some();
        let (whole, lines) = known.unwrap_or_default();
        let done = lines.into_iter().map(|line| ((line.step, line.row), line.chosen)).collect();
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path).map_err(fail("create"))?;
        let mut journal = Self { path: path.to_owned(), file, done };
        journal.file.set_len(whole).map_err(fail("write"))?;
        std::io::Seek::seek(&mut journal.file, std::io::SeekFrom::End(0)).map_err(fail("write"))?;
        if !goes_on {
            journal.append(&[head])?;
        }
        Ok(journal)
    }

    /// What became of a matrix in an earlier run.
    pub fn done(&self, matrix: &Matrix) -> Option<&Chosen> {
        self.done.get(&(matrix.step, matrix.rows.start))
    }

    /// Says that the codes of these matrices are on the disk.
    ///
    /// # Errors
    /// A write that fails.
    pub fn add(&mut self, matrices: &[&Matrix], chosen: &[Chosen]) -> Result<()> {
        let line = |(matrix, chosen): (&&Matrix, &Chosen)| Line {
            step: matrix.step,
            row: matrix.rows.start,
            chosen: chosen.clone(),
        };
        self.append(&matrices.iter().zip(chosen).map(line).collect::<Vec<_>>())
    }

    fn append<T: Serialize>(&mut self, lines: &[T]) -> Result<()> {
        let mut text = String::new();
        for line in lines {
            text += &serde_json::to_string(line).unwrap_or_default();
            text.push('\n');
        }
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        Ok(written.map_err(formats::Error::io(&self.path, "write"))?)
    }

    /// Removes it.
    pub fn discard(self) {
        // Nothing depends on it any more.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::Slot;
    use crate::quantizer::least_squares::Form;
    use crate::runtime::Place;

    #[test]
    fn whole_lines_of_the_same_work_are_taken_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let matrix = |step| Matrix {
            step,
            form: Form::Int8Rows,
            rows: 4..8,
            cols: 2,
            place: Place::new(Slot::FfnUp, 0),
            name: format!("m{step}"),
        };
        let chosen = Chosen { name: "m".into(), tokens: 3, share: 0.1, gain: None, nearest: false };
        let open = |work: &str, codes| Journal::open(&path, work.to_owned(), codes);
        let mut journal = open("a", false).unwrap();
        journal.add(&[&matrix(1), &matrix(2)], &[chosen.clone(), chosen.clone()]).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 3);
        fs::write(&path, &text[..text.len() - 4]).unwrap();
        let mut journal = open("a", true).unwrap();
        assert_eq!((journal.done(&matrix(1)), journal.done(&matrix(2))), (Some(&chosen), None));
        journal.add(&[&matrix(2)], std::slice::from_ref(&chosen)).unwrap();
        assert!(open("a", true).unwrap().done(&matrix(2)).is_some());
        let error = open("b", true).unwrap_err();
        assert!(error.to_string().contains("other work"), "{error}");
        assert!(open("a", false).unwrap().done(&matrix(1)).is_none(), "without the codes, it says nothing");
    }
}
