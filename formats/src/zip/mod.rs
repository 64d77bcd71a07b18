//! Zip archives (PKWARE's APPNOTE.TXT), as numpy and PyTorch use them: every tensor an entry, stored or deflated.

mod read;
mod write;

pub(crate) use read::{Archive, Entry, FIRST};
pub(crate) use write::{Member, layout};
