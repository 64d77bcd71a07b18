//! A written output once more, with tensors that are mostly zero packed: a bit for each element and those that are not zero.

use std::path::{Path, PathBuf};

use formats::bitmask::Packing;
use formats::{Access, FilePlan, Format, Limits, Sink};

use super::{Result, shape};
use crate::job::Job;
use crate::recipe::{Plan, Target};

/// Whether such a target can be packed: safetensors, as a file or in a folder.
pub fn is_packable(target: Target) -> bool {
    matches!(target, Target::Folder | Target::File(Format::Safetensors))
}

/// Where the output is written before it is packed.
pub fn dense(output: &Path) -> PathBuf {
    let name = output.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    output.with_file_name(format!("{name}.dense"))
}

/// Packs a sealed output of this plan into another, which is sealed too; and the bytes of its weight files.
///
/// # Errors
/// The output could not be created, a read or a write fails, an interruption.
pub fn pack(sealed: &Sink, plan: &Plan, output: &Path, force: bool, job: &Job) -> Result<(Sink, u64)> {
    let folder = plan.target == Target::Folder;
    let path = |name: &str| if folder { sealed.staging().join(name) } else { sealed.staging().to_owned() };
    let mut packings = Vec::with_capacity(plan.files.len());
    let mut plans = Vec::with_capacity(plan.files.len());
    for file in &plan.files {
        job.cancel.check()?;
        let packing = Packing::of(formats::open(&path(&file.name), Access::Mapped, &Limits::default())?)?;
        plans.push(FilePlan { name: file.name.clone(), layout: packing.layout(output)? });
        packings.push(packing);
    }
    let bytes = plans.iter().map(|plan| plan.layout.bytes).sum();
    let mut sink = Sink::create(output, shape(plan.target), plans, plan.other_bytes(), force)?;
    for (file, packing) in packings.iter().enumerate() {
        job.cancel.check()?;
        packing.write(&sink, file)?;
    }
    if folder {
        let written = plan.written.iter().map(|(name, _)| name);
        for name in written.chain(plan.copied.iter().map(|(name, _)| name)) {
            sink.copy(name, &sealed.staging().join(name))?;
        }
    }
    sink.seal()?;
    Ok((sink, bytes))
}
