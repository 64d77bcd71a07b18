//! `compress run`: continues a prompt, embeds texts, or predicts, by what the model is.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use formats::Access;
use serde::Serialize;
use serde_json::json;

use super::args::RunArgs;
use super::{Failure, print, print_json, progress, remark, stream};
use crate::check::{chain, text};
use crate::family::Kind;
use crate::job::Job;
use crate::loader::{ChatTemplate, Checkpoint, Options, Pooling, Tokenizer, Whole};
use crate::runtime::{self, End, Sampler};

/// Texts that are embedded together.
const TEXTS: usize = 64;

/// A line of output for each text.
#[derive(Serialize)]
struct Embedded<'a> {
    text: &'a str,
    embedding: Vec<f32>,
}

/// The output for all inputs.
#[derive(Serialize)]
struct Predicted<'a> {
    predictions: Vec<&'a [f32]>,
}

pub fn run(args: &RunArgs) -> Result<(), Failure> {
    let access = if args.common.no_mmap { Access::Read } else { Access::Mapped };
    let inputs = args.activations.map(Into::into);
    let checkpoint = Arc::new(Checkpoint::open(&args.model, &Options { access, inputs, ..Options::default() })?);
    let name = args.model.display();
    let Some(family) = checkpoint.family() else {
        let why = checkpoint.no_family().unwrap_or("its family is not known");
        return Err(Failure::Model(format!("{name}: cannot be run: {why}")));
    };
    remark(&checkpoint, &args.common);
    let job = progress::job(&args.common)?;
    match (family.kind, &args.prompt, &args.text, &args.inputs) {
        (Kind::Decoder, Some(prompt), _, _) => generate(args, &checkpoint, prompt, &job),
        (Kind::Encoder, _, Some(file), _) => embed(args, &checkpoint, file, &job),
        (Kind::Chain, _, _, Some(file)) => predict(args, &checkpoint, file, &job),
        (kind, ..) => {
            let (what, flag) = match kind {
                Kind::Decoder => ("a decoder", "--prompt TEXT"),
                Kind::Encoder => ("an encoder", "--text FILE"),
                Kind::Chain => ("a chain of linear layers", "--inputs FILE"),
            };
            Err(Failure::Usage(format!("{name}: is {what} ({}); run it with {flag}", family.name)))
        }
    }
}

fn tokenizer(checkpoint: &Checkpoint) -> Result<Tokenizer, Failure> {
    checkpoint.tokenizer()?.ok_or_else(|| {
        let found = match checkpoint.gguf() {
            Some(_) => format!("{}: found no tokenizer in the file's metadata", checkpoint.path().display()),
            None => format!("{}: found no tokenizer.json", checkpoint.files().folder.display()),
        };
        Failure::Model(format!("{found}, expected the model's tokenizer. Put its tokenizer.json beside the weights"))
    })
}

/// What the tokenizer cannot do with a text.
fn refused(why: String) -> Failure {
    Failure::Model(format!("the tokenizer refuses the text: {why}"))
}

fn generate(args: &RunArgs, checkpoint: &Arc<Checkpoint>, prompt: &str, job: &Job) -> Result<(), Failure> {
    let tokenizer = tokenizer(checkpoint)?;
    let companions = checkpoint.companions();
    let mut stop = companions.stop_tokens()?;
    let tokens = if args.chat {
        let template = ChatTemplate::read(companions, checkpoint.path())?;
        stop.extend(template.eos().and_then(|text| tokenizer.token(text)));
        tokenizer.encode(&template.render(prompt)?).map_err(refused)?
    } else {
        tokenizer.bos().into_iter().chain(tokenizer.encode(prompt).map_err(refused)?).collect()
    };
    let model = runtime::load(checkpoint)?;
    let mut sampler = Sampler::new(args.temperature, args.top_p, args.seed);
    let mut text_of = tokenizer.detokenizer(&tokens).map_err(refused)?;
    let quiet = args.common.json;
    let (mut continuation, mut count, mut failure) = (String::new(), 0, None);
    let show = |text: &str| if quiet { Ok(ControlFlow::Continue(())) } else { stream(text) };
    let mut begun = false;
    let end = runtime::generate(&model, &tokens, args.max_tokens, &stop, &mut sampler, job, |token| {
        // The prompt is shown when it has proved to be one.
        let mut shown = if begun || args.chat { String::new() } else { prompt.to_owned() };
        begun = true;
        let next = text_of(token).map_err(refused).and_then(|text| {
            continuation.push_str(&text);
            count += 1;
            shown.push_str(&text);
            show(&shown)
        });
        next.unwrap_or_else(|e| {
            failure = Some(e);
            ControlFlow::Break(())
        })
    })?;
    if let Some(failure) = failure {
        return Err(failure);
    }
    if !quiet {
        // A model that ends at once adds nothing.
        let rest = if begun || args.chat { "\n".to_owned() } else { format!("{prompt}\n") };
        return if end == End::Receiver { Ok(()) } else { print(&rest) };
    }
    let end = match end {
        End::Stop => "stop",
        End::Length | End::Receiver => "length",
        End::Context => "context",
    };
    print_json(&json!({
        "prompt": prompt, "continuation": continuation, "prompt_tokens": tokens.len(), "tokens": count, "end": end,
    }))
}

fn embed(args: &RunArgs, checkpoint: &Arc<Checkpoint>, file: &Path, job: &Job) -> Result<(), Failure> {
    let tokenizer = tokenizer(checkpoint)?;
    let companions = checkpoint.companions();
    let modules = companions.modules.as_deref().unwrap_or_default();
    let kind = |module: &str| module.rsplit('.').next().unwrap_or(module).to_owned();
    if let Some(other) = modules.iter().find(|m| !["Transformer", "Pooling", "Normalize"].contains(&kind(m).as_str())) {
        let name = args.model.display();
        return Err(Failure::Model(format!("{name}: modules.json names {other}, which this version cannot run")));
    }
    let normalised = modules.iter().any(|module| kind(module) == "Normalize");
    let pooling = companions.pooling.unwrap_or(Pooling::Mean);
    let model = runtime::load(checkpoint)?;
    let longest = companions.max_seq_length()?.unwrap_or(usize::MAX).min(model.shape().max_positions);
    let text = text::load(Some(file))?;
    let mut cut = 0;
    for texts in text::lines(&text.content).chunks(TEXTS) {
        let whole = texts.iter().map(|text| tokenizer.encode_whole(text, longest).map_err(refused));
        let whole: Vec<Whole> = whole.collect::<Result<_, _>>()?;
        cut += whole.iter().filter(|whole| whole.cut).count();
        let windows: Vec<Vec<u32>> = whole.into_iter().map(|whole| whole.tokens).collect();
        let embeddings = runtime::embed(&[&model], &windows, pooling, job, "embed")?.concat();
        for (text, mut embedding) in texts.iter().zip(embeddings) {
            if normalised {
                runtime::normalise(&mut embedding);
            }
            print_json(&Embedded { text, embedding })?;
        }
    }
    if cut > 0 && !args.common.quiet {
        let lines = if cut == 1 { "1 line was".to_owned() } else { format!("{cut} lines were") };
        eprintln!("compress: {}: {lines} cut to the {longest} tokens that the model takes", file.display());
    }
    Ok(())
}

fn predict(args: &RunArgs, checkpoint: &Arc<Checkpoint>, file: &Path, job: &Job) -> Result<(), Failure> {
    let model = runtime::load_chain(checkpoint)?;
    let widths = &model.shape().widths;
    let (features, outputs) = (widths.first().copied().unwrap_or(1), widths.last().copied().unwrap_or(1));
    let inputs = chain::inputs(Some(file), features)?;
    let found = model.predict(&inputs.values, 0, &mut runtime::Unobserved, job)?;
    let rows: Vec<&[f32]> = found.chunks(outputs).collect();
    if args.common.json {
        return print_json(&Predicted { predictions: rows });
    }
    let line = |row: &&[f32]| row.iter().map(f32::to_string).collect::<Vec<_>>().join(",") + "\n";
    print(&rows.iter().map(line).collect::<String>())
}
