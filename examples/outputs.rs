//! Writes what the runtime computes to standard output, as little-endian f32, for comparison with other programs: a decoder's
//! logits or an encoder's last hidden states of each text, in turn; a chain's outputs of each line of numbers.
//!
//! Usage: outputs MODEL < LINES, a text's token numbers, or a chain's inputs, a line. Weights are multiplied as floats, as
//! weight-only formats are everywhere.

use std::error::Error;
use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::sync::Arc;

use modelpress::encoding::Inputs;
use modelpress::family::Architecture;
use modelpress::job::Job;
use modelpress::loader::{Checkpoint, Options};
use modelpress::runtime::{self, Unobserved};

fn main() -> Result<(), Box<dyn Error>> {
    let path: PathBuf = std::env::args_os().nth(1).ok_or("Usage: outputs MODEL < LINES")?.into();
    let options = Options { inputs: Some(Inputs::Float), ..Options::default() };
    let model = Arc::new(Checkpoint::open(&path, &options)?);
    let job = Job::new(2);
    let is_chain = model.family().is_some_and(|family| matches!(family.architecture, Architecture::Chain(_)));
    let mut out = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let line = line?;
        let numbers = line.split_whitespace();
        let values = if is_chain {
            let inputs = numbers.map(str::parse).collect::<Result<Vec<f32>, _>>()?;
            runtime::load_chain(&model)?.predict(&inputs, 0, &mut Unobserved, &job)?
        } else {
            let tokens = numbers.map(str::parse).collect::<Result<Vec<u32>, _>>()?;
            let found = runtime::forward(&runtime::load(&model)?, &tokens, &job)?;
            if found.logits.is_empty() { found.hidden_states.last().cloned().unwrap_or_default() } else { found.logits }
        };
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        out.write_all(&bytes)?;
    }
    Ok(())
}
