//! A chain of linear layers, as torch's `nn.Sequential` saves it: `0.weight`, `0.bias`, `2.weight` … The numbers between
//! belong to activations. One layer is linear regression.

use std::collections::BTreeMap;

use serde_json::Value;

use super::config::{Fate, Fields};
use super::table::{Expected, Piece};
use super::{Activation, Architecture, Chain, Error, Family, Kind, Part, Role, Slot};

/// The name in reports.
pub const NAME: &str = "linear-chain";

/// A tensor's name and shape.
type Named<'a> = (&'a str, &'a [usize]);

/// Where a tensor belongs: the number in the sequence, and the part.
fn place<'a>(name: &'a str, prefix: &mut Option<&'a str>) -> Option<(u64, Part)> {
    let (rest, part) = match (name.strip_suffix("weight"), name.strip_suffix("bias")) {
        (Some(rest), _) => (rest, Part::Weight),
        (_, Some(rest)) => (rest, Part::Bias),
        _ => return None,
    };
    // A single `nn.Linear` is saved without a number.
    let (here, index) = match rest.strip_suffix('.') {
        None if rest.is_empty() => ("", 0),
        None => return None,
        Some(path) => {
            let number = path.rsplit('.').next().unwrap_or(path);
            if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            (&path[..path.len() - number.len()], number.parse().ok()?)
        }
    };
    (*prefix.get_or_insert(here) == here).then_some((index, part))
}

/// The chain that tensors of these names and shapes make, or `None` if they are no chain. `config` may name an `activation`
/// (or `hidden_act`); without it, it is ReLU.
///
/// # Errors
/// [`Error::Chain`] if the names are those of a chain and the shapes do not fit one another; [`Error::Unsupported`] for an
/// unknown activation.
pub fn from_tensors(tensors: &[(&str, &[usize])], config: Option<&Value>) -> Result<Option<Family>, Error> {
    let mut prefix = None;
    let mut layers: BTreeMap<u64, [Option<Named<'_>>; 2]> = BTreeMap::new();
    for &(name, shape) in tensors {
        let Some((index, part)) = place(name, &mut prefix) else { return Ok(None) };
        let pair = layers.entry(index).or_default();
        if pair[part as usize].replace((name, shape)).is_some() {
            return Ok(None);
        }
    }
    let wrong = |tensor: &str, expected: String, found: &[usize]| {
        Err(Error::Chain { tensor: tensor.into(), expected, found: found.to_vec() })
    };
    let mut widths: Vec<usize> = Vec::new();
    let mut expected = Vec::new();
    for (layer, pair) in layers.values().enumerate() {
        // A gain without a matrix: some other kind of layer, and so some other kind of model.
        let Some((name, shape)) = pair[0] else { return Ok(None) };
        let &[outputs, inputs] = shape else { return Ok(None) };
        match widths.last() {
            None => widths.push(inputs),
            Some(&width) if width != inputs => {
                return wrong(name, format!("{width} columns, the rows of the layer before"), shape);
            }
            Some(_) => {}
        }
        if inputs == 0 || outputs == 0 {
            return wrong(name, "at least one row and one column".into(), shape);
        }
        widths.push(outputs);
        expected.push(tensor(name, layer, Part::Weight, Role::Linear, shape));
        if let Some((name, shape)) = pair[1] {
            if shape != [outputs] {
                return wrong(name, format!("[{outputs}], one for each row of the layer's weight"), shape);
            }
            expected.push(tensor(name, layer, Part::Bias, Role::Bias, shape));
        }
    }
    if widths.is_empty() {
        return Ok(None);
    }
    let (activation, fate) = match config {
        None => (Activation::Relu, Fate::default()),
        Some(config) => {
            let mut fields = Fields::new(config, NAME)?;
            let other = fields.activation_or("hidden_act", Activation::Relu)?;
            (fields.activation_or("activation", other)?, fields.fate())
        }
    };
    Ok(Some(Family {
        name: NAME,
        kind: Kind::Chain,
        architecture: Architecture::Chain(Chain { widths, activation }),
        gguf: None,
        config: fate,
        tensors: expected,
        table: None,
    }))
}

fn tensor(name: &str, layer: usize, part: Part, role: Role, shape: &[usize]) -> Expected {
    Expected {
        names: vec![name.into()],
        layer,
        expert: None,
        part,
        role,
        shape: shape.to_vec(),
        transposed: false,
        required: true,
        pieces: vec![Piece { slot: Slot::ChainLinear, expert: None, rows: 0..shape[0] }],
        gguf: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn chain(family: Option<Family>) -> Chain {
        match family.unwrap().architecture {
            Architecture::Chain(chain) => chain,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn layers_are_found_in_order_whatever_their_numbers() {
        let tensors: &[(&str, &[usize])] =
            &[("10.weight", &[1, 7]), ("0.weight", &[5, 3]), ("0.bias", &[5]), ("2.weight", &[7, 5])];
        let family = from_tensors(tensors, Some(&json!({"activation": "tanh", "x": 1}))).unwrap();
        assert_eq!(family.as_ref().unwrap().tensors()[3].name(), "10.weight");
        assert_eq!(family.as_ref().unwrap().config.unknown, ["x"]);
        assert_eq!(chain(family), Chain { widths: vec![3, 5, 7, 1], activation: Activation::Tanh });
        let family = from_tensors(&[("net.0.weight", &[1, 2]), ("net.0.bias", &[1])], None).unwrap();
        assert_eq!(chain(family), Chain { widths: vec![2, 1], activation: Activation::Relu });
        let family = from_tensors(&[("weight", &[1, 2])], None).unwrap();
        assert_eq!(chain(family).widths, [2, 1]);
    }

    #[test]
    fn other_models_are_no_chains_and_misfits_are_errors() {
        for other in ["model.norm.weight", "0.running_mean", "a.0.weight", "x.weight", "00weight"] {
            let tensors: &[(&str, &[usize])] = &[("0.weight", &[1, 2]), (other, &[1, 2])];
            assert!(from_tensors(tensors, None).unwrap().is_none(), "{other}");
        }
        assert!(from_tensors(&[], None).unwrap().is_none());
        assert!(from_tensors(&[("0.weight", &[4])], None).unwrap().is_none());
        assert!(from_tensors(&[("0.weight", &[5, 3]), ("2.weight", &[7, 4])], None).is_err());
        assert!(from_tensors(&[("0.weight", &[5, 3]), ("0.bias", &[4])], None).is_err());
        assert!(from_tensors(&[("0.weight", &[5, 0])], None).is_err());
    }
}
