//! Where llama.cpp computes otherwise than the model asks: what no key of its files can say.

use super::{LAYERS_OF_27B, Unsayable};
use crate::family::{Activation, Family, Position, RopeScaling, Transformer};

/// Whether llama.cpp's loader takes a tensor: biases behind the attention and in the feed-forward part are not for every
/// architecture, and a file with a tensor that it does not expect is refused as a whole.
pub fn has_place(arch: &str, tensor: &str) -> bool {
    let rare = ["attn_output.bias", "ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"];
    matches!(arch, "llama" | "gpt2" | "bert") || !rare.iter().any(|end| tensor.ends_with(end))
}

/// What llama.cpp will do otherwise, in words, where it matters only for some texts.
///
/// # Errors
/// Something that it would compute otherwise for every text.
pub fn differences(family: &Family, t: &Transformer) -> Result<Vec<String>, Unsayable> {
    let arch = family.gguf.unwrap_or_default();
    let refuse =
        |problem: String| Err(Unsayable { problem, next: "Write safetensors instead: -o NAME.safetensors".to_owned() });
    let activations: &[Activation] = match arch {
        // Its gelu is the approximation by tanh, whichever the model was trained with.
        "gemma3" | "gpt2" | "bert" => &[Activation::GeluTanh, Activation::Gelu],
        _ => &[Activation::Silu],
    };
    if !activations.contains(&t.activation) {
        return refuse(format!("llama.cpp has no {arch} whose activation is {:?}", t.activation));
    }
    let width = if arch == "gemma3" && t.layers == LAYERS_OF_27B { t.hidden / t.heads } else { t.head_dim };
    let scale = 1.0 / (width as f32).sqrt();
    if (t.attention_scale - scale).abs() > 1e-6 * scale {
        return refuse(format!(
            "llama.cpp scales attention in this {arch} by {scale}, and the model by {}",
            t.attention_scale
        ));
    }
    if t.experts.is_some_and(|experts| !experts.normalise) {
        return refuse("llama.cpp always scales the chosen experts' probabilities to sum to one".to_owned());
    }
    if matches!(arch, "phi3" | "qwen2") && t.heads * t.head_dim != t.hidden {
        return refuse(format!(
            "llama.cpp has no {arch} whose {} heads of {} are not as wide as the model",
            t.heads, t.head_dim
        ));
    }
    match &t.position {
        Position::Learned { .. } => {}
        Position::Rope(ropes) => {
            for (rope, window) in ropes.iter().zip(&t.windows) {
                let local = arch == "gemma3" && window.is_some();
                let said = match rope.scaling {
                    RopeScaling::None => true,
                    RopeScaling::Linear { .. } => !local,
                    RopeScaling::Llama3 { .. } => arch == "llama",
                    RopeScaling::Each(_) => matches!(arch, "llama" | "phi3"),
                    RopeScaling::Long { .. } => arch == "phi3",
                };
                if !said {
                    return refuse(format!(
                        "llama.cpp cannot stretch the wavelengths of a {arch} so: {:?}",
                        rope.scaling
                    ));
                }
                if arch == "llama" && rope.dims != t.head_dim {
                    return refuse(format!(
                        "llama.cpp has no llama that rotates {} of {} dimensions",
                        rope.dims, t.head_dim
                    ));
                }
            }
        }
    }
    let mut notes = Vec::new();
    let window = t.windows.iter().flatten().min().filter(|window| arch != "gemma3" && **window < t.max_positions);
    if let Some(window) = window {
        notes.push(format!(
            "attention sees the latest {window} positions, and in llama.cpp's {arch} all of them; up to {window} tokens that is the same"
        ));
    }
    if let Position::Rope(ropes) = &t.position
        && let Some(RopeScaling::Long { original_context, .. }) = ropes.first().map(|rope| &rope.scaling)
    {
        notes.push(format!(
            "llama.cpp rotates by the factors for long texts as soon as its context (-c) is larger than {original_context}, \
             whatever the length of the text"
        ));
    }
    Ok(notes)
}
