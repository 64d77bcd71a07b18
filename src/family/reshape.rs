//! A model of the same family with fewer layers, heads or neurons: which parts of which tensors go together, and the config
//! that says it.

use serde_json::{Value, json};

use super::{Architecture, Family, Position, Slot, Transformer, find};

/// What is left of a model: of each block that stays, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remains {
    /// The blocks.
    pub blocks: Vec<Block>,
}

/// What is left of a block. Every block keeps as many groups and neurons as every other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Its number in the original.
    pub layer: usize,
    /// The key and value heads that stay, each with all of its query heads.
    pub groups: Vec<u32>,
    /// The neurons that stay: of the feed-forward part, or of each expert.
    pub neurons: Vec<Vec<u32>>,
}

impl Remains {
    /// All of a model.
    pub fn all(t: &Transformer) -> Self {
        let (count, width) = neurons(t);
        let groups: Vec<u32> = (0..t.kv_heads as u32).collect();
        let neurons = vec![(0..width as u32).collect(); count];
        let block = |layer| Block { layer, groups: groups.clone(), neurons: neurons.clone() };
        Self { blocks: (0..t.layers).map(block).collect() }
    }

    /// The number that an original's block has here, if it stays.
    pub fn position(&self, layer: usize) -> Option<usize> {
        self.blocks.iter().position(|block| block.layer == layer)
    }

    /// The architecture of what is left.
    pub fn architecture(&self, t: &Transformer) -> Transformer {
        let mut left = t.clone();
        let layers: Vec<usize> = self.blocks.iter().map(|block| block.layer).collect();
        left.layers = layers.len();
        left.windows = layers.iter().map(|&layer| t.windows[layer]).collect();
        if let Position::Rope(ropes) = &t.position {
            left.position = Position::Rope(layers.iter().map(|&layer| ropes[layer].clone()).collect());
        }
        if let Some(block) = self.blocks.first() {
            left.heads = t.heads / t.kv_heads * block.groups.len();
            left.kv_heads = block.groups.len();
            let width = block.neurons.first().map_or(0, Vec::len);
            match &mut left.experts {
                // Where the config has one number for both, both change.
                Some(experts) if t.intermediate == experts.intermediate => {
                    (experts.intermediate, left.intermediate) = (width, width);
                }
                Some(experts) => experts.intermediate = width,
                None => left.intermediate = width,
            }
        }
        left
    }
}

/// Feed-forward parts of a block, and the neurons of each.
pub fn neurons(t: &Transformer) -> (usize, usize) {
    t.experts.map_or((1, t.intermediate), |experts| (experts.count, experts.intermediate))
}

/// Which rows of a slot's matrix stay, if not all.
pub fn rows(slot: Slot, block: &Block, expert: Option<usize>, t: &Transformer) -> Option<Vec<u32>> {
    match slot {
        Slot::AttnQ => Some(heads(block, t.heads / t.kv_heads, t.head_dim)),
        Slot::AttnK | Slot::AttnV => Some(heads(block, 1, t.head_dim)),
        Slot::FfnGate | Slot::FfnUp => block.neurons.get(expert.unwrap_or(0)).cloned(),
        _ => None,
    }
}

/// Which columns of a slot's matrix stay, if not all.
pub fn columns(slot: Slot, block: &Block, expert: Option<usize>, t: &Transformer) -> Option<Vec<u32>> {
    match slot {
        Slot::AttnOut => rows(Slot::AttnQ, block, None, t),
        Slot::FfnDown => rows(Slot::FfnUp, block, expert, t),
        _ => None,
    }
}

/// The rows of so many heads for each group that stays.
fn heads(block: &Block, per_group: usize, dim: usize) -> Vec<u32> {
    let width = (per_group * dim) as u32;
    block.groups.iter().flat_map(|group| group * width..(group + 1) * width).collect()
}

/// The names of a config's numbers: layers, heads, neurons.
fn keys(family: &str) -> (&'static str, &'static str, &'static str) {
    match family {
        "gpt2" => ("n_layer", "n_head", "n_inner"),
        "distilbert" => ("n_layers", "n_heads", "hidden_dim"),
        "qwen3_moe" => ("num_hidden_layers", "num_attention_heads", "moe_intermediate_size"),
        _ => ("num_hidden_layers", "num_attention_heads", "intermediate_size"),
    }
}

/// The config of what is left, and the family that it makes; in words, why the family's config cannot say it.
pub fn config(family: &Family, config: &Value, remains: &Remains) -> Result<(Value, Family), String> {
    let Architecture::Transformer(t) = &family.architecture else {
        return Err("a chain of linear layers has neither heads nor blocks".to_owned());
    };
    let left = remains.architecture(t);
    let mut config = config.clone();
    let Some(fields) = config.as_object_mut() else { return Err("its config is no object".to_owned()) };
    let (layers, heads, width) = keys(family.name);
    fields.insert(layers.into(), left.layers.into());
    if left.heads != t.heads {
        fields.insert(heads.into(), left.heads.into());
        if fields.contains_key("num_key_value_heads") || left.kv_heads != left.heads {
            fields.insert("num_key_value_heads".into(), left.kv_heads.into());
        }
        // It was hidden_size / heads where it was not said.
        if heads == "num_attention_heads" {
            fields.insert("head_dim".into(), left.head_dim.into());
        }
    }
    let neurons_left = neurons(&left).1;
    if neurons_left != neurons(t).1 {
        fields.insert(width.into(), neurons_left.into());
    }
    // What is said of each layer is said of those that stay.
    for name in ["layer_types", "no_rope_layers"] {
        if let Some(all) = fields.get_mut(name).and_then(Value::as_array_mut).filter(|all| all.len() == t.layers) {
            *all = remains.blocks.iter().map(|block| all[block.layer].clone()).collect();
        }
    }
    if left.layers != t.layers && !fields.contains_key("layer_types") && t.windows.iter().any(|w| *w != t.windows[0]) {
        let kind = |window: &Option<usize>| if window.is_some() { "sliding_attention" } else { "full_attention" };
        fields.insert("layer_types".into(), left.windows.iter().map(|window| json!(kind(window))).collect());
    }
    let cannot = |why: &str| format!("the config of a {} has no words for it: {why}", family.name);
    let found = find(&config).map_err(|e| cannot(&e.to_string()))?;
    match &found.architecture {
        Architecture::Transformer(made) if **made == left => Ok((config, found)),
        Architecture::Transformer(made) if made.head_dim != left.head_dim => {
            Err(cannot("heads are as wide as the hidden size over their number"))
        }
        _ => Err(cannot("layers that differ cannot be renumbered")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama() -> Value {
        json!({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
            "num_hidden_layers": 3, "intermediate_size": 96, "vocab_size": 256, "tie_word_embeddings": true})
    }

    fn shape(family: &Family) -> Transformer {
        let Architecture::Transformer(t) = &family.architecture else { panic!("a transformer") };
        (**t).clone()
    }

    #[test]
    fn heads_go_with_their_group_and_the_config_says_how_wide_they_are() {
        let family = find(&llama()).unwrap();
        let t = shape(&family);
        let mut remains = Remains::all(&t);
        assert_eq!(config(&family, &llama(), &remains).unwrap().0, llama());
        remains.blocks.remove(1);
        for block in &mut remains.blocks {
            block.groups = vec![1];
            block.neurons = vec![vec![0, 5, 95]];
        }
        let block = &remains.blocks[1];
        assert_eq!((block.layer, remains.position(2), remains.position(1)), (2, Some(1), None));
        assert_eq!(rows(Slot::AttnQ, block, None, &t), Some((32..64).collect()));
        assert_eq!(rows(Slot::AttnV, block, None, &t), Some((16..32).collect()));
        assert_eq!(columns(Slot::AttnOut, block, None, &t), Some((32..64).collect()));
        assert_eq!(columns(Slot::FfnDown, block, None, &t), Some(vec![0, 5, 95]));
        assert_eq!((rows(Slot::AttnNorm, block, None, &t), columns(Slot::AttnQ, block, None, &t)), (None, None));
        let (config, made) = config(&family, &llama(), &remains).unwrap();
        let t = shape(&made);
        assert_eq!((t.layers, t.heads, t.kv_heads, t.head_dim, t.intermediate), (2, 2, 1, 16, 3));
        assert_eq!(config["head_dim"], 16);
    }

    #[test]
    fn what_a_config_cannot_say_is_refused() {
        let gpt2 = json!({"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 2, "vocab_size": 256,
            "n_positions": 32});
        let family = find(&gpt2).unwrap();
        let mut remains = Remains::all(&shape(&family));
        remains.blocks.iter_mut().for_each(|block| block.groups = vec![0, 2]);
        assert!(config(&family, &gpt2, &remains).unwrap_err().contains("as wide as"));
        let mut fewer = Remains::all(&shape(&family));
        fewer.blocks.iter_mut().for_each(|block| block.neurons = vec![(0..100).collect()]);
        assert_eq!(config(&family, &gpt2, &fewer).unwrap().0["n_inner"], 100);
    }

    #[test]
    fn layers_that_slide_stay_those_that_slide() {
        let gemma = json!({"model_type": "gemma3_text", "hidden_size": 64, "num_attention_heads": 4, "head_dim": 16,
            "num_key_value_heads": 1, "num_hidden_layers": 7, "intermediate_size": 96, "vocab_size": 256,
            "sliding_window": 8, "sliding_window_pattern": 3, "query_pre_attn_scalar": 16});
        let family = find(&gemma).unwrap();
        let t = shape(&family);
        let mut remains = Remains::all(&t);
        remains.blocks.remove(1);
        let (config, made) = config(&family, &gemma, &remains).unwrap();
        assert_eq!(config["layer_types"].as_array().unwrap().len(), 6);
        assert_eq!(shape(&made).windows[1], t.windows[2]);
    }
}
