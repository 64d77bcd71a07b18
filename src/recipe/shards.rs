//! Which weight goes into which file of a sharded folder.

use super::plan::Step;
use crate::loader::SINGLE;

/// Cuts steps, in their order, into files of at most `most` bytes of tensors; what is larger alone has a file of its own. For
/// each step its file, and the files' names as transformers expects them.
pub fn cut(steps: &[Step], most: u64) -> (Vec<usize>, Vec<String>) {
    let (mut file, mut bytes) = (0, 0);
    let mut place = |step: &Step| {
        let size = (0..step.parts.len()).map(|part| step.bytes_of(part, &(0..step.lines())).end).sum::<u64>();
        if bytes > 0 && bytes + size > most {
            (file, bytes) = (file + 1, 0);
        }
        bytes += size;
        file
    };
    let places: Vec<usize> = steps.iter().map(&mut place).collect();
    let count = file + 1;
    let name = |i: usize| format!("model-{:05}-of-{count:05}.safetensors", i + 1);
    let names = if count == 1 { vec![SINGLE.to_owned()] } else { (0..count).map(name).collect() };
    (places, names)
}
