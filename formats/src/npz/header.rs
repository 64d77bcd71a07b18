//! The header of an array: a literal of Python's with the keys `descr`, `fortran_order` and `shape`.

use crate::Dtype;

/// What an array begins with, before two bytes of version.
pub(crate) const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// numpy's own limit for headers from strangers is 10,000 bytes.
pub(super) const MOST: u64 = 1 << 16;

/// More dimensions numpy does not have.
const MAX_DIMS: usize = 64;

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub dtype: Dtype,
    /// Whether the bytes of each number are in the other order.
    pub big_endian: bool,
    /// Whether the first dimension is the innermost.
    pub fortran: bool,
    pub shape: Vec<u64>,
}

/// The length of the preamble, from its first twelve bytes: magic, version, length, header.
///
/// # Errors
/// What was found instead.
pub(super) fn preamble(first: [u8; 12]) -> Result<u64, String> {
    if !first.starts_with(MAGIC) {
        return Err("bytes that do not begin with numpy's magic".into());
    }
    let short = u64::from(u16::from_le_bytes([first[8], first[9]]));
    let long = u64::from(u32::from_le_bytes([first[8], first[9], first[10], first[11]]));
    let length = match first[6] {
        1 => 10 + short,
        2 | 3 => 12 + long,
        version => return Err(format!("version {version} of the format")),
    };
    if length > MOST { Err(format!("a header of {length} bytes")) } else { Ok(length) }
}

/// Reads a preamble as a whole.
///
/// # Errors
/// What was found that is not a header of numbers.
pub(super) fn parse(preamble: &[u8]) -> Result<Header, String> {
    let from = if preamble.get(6) == Some(&1) { 10 } else { 12 };
    let text =
        preamble.get(from..).and_then(|bytes| std::str::from_utf8(bytes).ok()).ok_or("a header that is no text")?;
    let mut literal = Literal { rest: text, depth: 0 };
    let Value::Dict(fields) = literal.value()? else { return Err("a header that is no dictionary".into()) };
    if !literal.rest.trim_end().is_empty() {
        return Err("something after the header's dictionary".into());
    }
    let [mut descr, mut fortran, mut shape] = [None, None, None];
    for (key, value) in fields {
        let place = match key.as_str() {
            "descr" => &mut descr,
            "fortran_order" => &mut fortran,
            "shape" => &mut shape,
            other => return Err(format!("the unknown key `{other}` in the header")),
        };
        if place.replace(value).is_some() {
            return Err(format!("the key `{key}` twice in the header"));
        }
    }
    let (dtype, big_endian) = match descr {
        Some(Value::Text(descr)) => dtype(&descr)?,
        Some(Value::List(_)) => return Err("an array of records".into()),
        _ => return Err("a header without `descr`".into()),
    };
    let Some(Value::Bool(fortran)) = fortran else { return Err("a header without `fortran_order`".into()) };
    let Some(Value::List(dims)) = shape else { return Err("a header without `shape`".into()) };
    if dims.len() > MAX_DIMS {
        return Err(format!("{} dimensions", dims.len()));
    }
    let dims = dims.into_iter().map(|dim| match dim {
        Value::Number(dim) => Ok(dim),
        _ => Err("a dimension that is no number".to_owned()),
    });
    Ok(Header { dtype, big_endian, fortran, shape: dims.collect::<Result<_, _>>()? })
}

/// The type that a description names, and whether its bytes are in the other order.
///
/// ml_dtypes' bfloat16 is described as two bytes without a meaning, which nothing else of numbers is.
fn dtype(descr: &str) -> Result<(Dtype, bool), String> {
    let (order, kind) = match descr.as_bytes().first() {
        Some(b'<' | b'>' | b'|' | b'=') => descr.split_at(1),
        _ => ("<", descr),
    };
    let dtype = match kind {
        "b1" | "?" => Dtype::Bool,
        "u1" => Dtype::U8,
        "i1" => Dtype::I8,
        "u2" => Dtype::U16,
        "i2" => Dtype::I16,
        "u4" => Dtype::U32,
        "i4" => Dtype::I32,
        "u8" => Dtype::U64,
        "i8" => Dtype::I64,
        "f2" => Dtype::F16,
        "f4" => Dtype::F32,
        "f8" => Dtype::F64,
        "c8" => Dtype::C64,
        "V2" => Dtype::BF16,
        "O" => return Err("Python objects (descr `|O`), which would have to be executed".into()),
        _ => return Err(format!("elements of type `{descr}`")),
    };
    Ok((dtype, order == ">" && dtype.block_bits() > 8))
}

/// numpy's description of a type.
pub(super) fn descr(dtype: Dtype) -> Option<&'static str> {
    Some(match dtype {
        Dtype::Bool => "|b1",
        Dtype::U8 => "|u1",
        Dtype::I8 => "|i1",
        Dtype::U16 => "<u2",
        Dtype::I16 => "<i2",
        Dtype::U32 => "<u4",
        Dtype::I32 => "<i4",
        Dtype::U64 => "<u8",
        Dtype::I64 => "<i8",
        Dtype::F16 => "<f2",
        Dtype::F32 => "<f4",
        Dtype::F64 => "<f8",
        Dtype::C64 => "<c8",
        Dtype::BF16 => "<V2",
        _ => return None,
    })
}

/// A value of Python's, as far as headers need it. Lists and tuples are the same here.
enum Value {
    Text(String),
    Bool(bool),
    Number(u64),
    List(Vec<Value>),
    Dict(Vec<(String, Value)>),
}

/// What is left of a literal.
struct Literal<'a> {
    rest: &'a str,
    depth: u32,
}

impl Literal<'_> {
    /// The next character that is no space, taken.
    fn next(&mut self) -> Result<char, String> {
        self.rest = self.rest.trim_start();
        let next = self.rest.chars().next().ok_or("a header that ends too early")?;
        self.rest = &self.rest[next.len_utf8()..];
        Ok(next)
    }

    /// Takes `wanted` if it is next.
    fn take(&mut self, wanted: &str) -> bool {
        self.rest = self.rest.trim_start();
        let rest = self.rest.strip_prefix(wanted);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn value(&mut self) -> Result<Value, String> {
        for (word, value) in [("True", true), ("False", false)] {
            if self.take(word) {
                return Ok(Value::Bool(value));
            }
        }
        match self.next()? {
            quote @ ('\'' | '"') => Ok(Value::Text(self.text(quote)?)),
            '(' => self.list(")"),
            '[' => self.list("]"),
            '{' => self.dict(),
            digit @ '0'..='9' => {
                let end = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
                let number = format!("{digit}{}", &self.rest[..end]);
                // Python 2 wrote an L after long ones.
                self.rest = self.rest[end..].strip_prefix('L').unwrap_or(&self.rest[end..]);
                number.parse().map(Value::Number).map_err(|_| format!("the number {number}"))
            }
            other => Err(format!("`{other}` in the header")),
        }
    }

    fn text(&mut self, quote: char) -> Result<String, String> {
        let (text, rest) = self.rest.split_once(quote).ok_or("a text without an end in the header")?;
        self.rest = rest;
        if text.contains('\\') { Err("an escape in the header".into()) } else { Ok(text.to_owned()) }
    }

    fn list(&mut self, end: &str) -> Result<Value, String> {
        // Descriptions of records nest; none is read, so none needs to be deep.
        self.depth += 1;
        if self.depth > 4 {
            return Err("a header that nests".into());
        }
        let mut values = Vec::new();
        while !self.take(end) {
            values.push(self.value()?);
            if !self.take(",") {
                if self.take(end) {
                    break;
                }
                return Err("a list without commas in the header".into());
            }
        }
        self.depth -= 1;
        Ok(Value::List(values))
    }

    fn dict(&mut self) -> Result<Value, String> {
        self.depth += 1;
        if self.depth > 1 {
            return Err("a header that nests".into());
        }
        let mut fields = Vec::new();
        while !self.take("}") {
            let Value::Text(key) = self.value()? else { return Err("a key that is no text in the header".into()) };
            if !self.take(":") {
                return Err(format!("the key `{key}` without a value in the header"));
            }
            fields.push((key, self.value()?));
            if !self.take(",") {
                if self.take("}") {
                    break;
                }
                return Err("a dictionary without commas in the header".into());
            }
        }
        self.depth -= 1;
        Ok(Value::Dict(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Header, String> {
        let mut bytes = b"\x93NUMPY\x01\x00\0\0".to_vec();
        bytes.extend_from_slice(text.as_bytes());
        parse(&bytes)
    }

    #[test]
    fn headers_of_numpy_in_every_spelling() {
        let header = of("{'descr': '>f4', 'fortran_order': True, 'shape': (3, 4), }      \n").unwrap();
        assert_eq!(header, Header { dtype: Dtype::F32, big_endian: true, fortran: true, shape: vec![3, 4] });
        let header = of("{\"shape\":(5L,),\"descr\":\"|u1\",\"fortran_order\":False}").unwrap();
        assert_eq!((header.shape, header.dtype, header.big_endian), (vec![5], Dtype::U8, false));
        assert_eq!(of("{'descr': '<V2', 'fortran_order': False, 'shape': ()}").unwrap().shape, [0u64; 0]);
        // One byte has no order.
        assert!(!of("{'descr': '>i1', 'fortran_order': False, 'shape': ()}").unwrap().big_endian);
    }

    #[test]
    fn what_is_no_array_of_numbers_is_named() {
        for (text, named) in [
            ("{'descr': '|O', 'fortran_order': False, 'shape': ()}", "Python objects"),
            ("{'descr': '<U5', 'fortran_order': False, 'shape': ()}", "`<U5`"),
            ("{'descr': '<c16', 'fortran_order': False, 'shape': ()}", "`<c16`"),
            ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': ()}", "records"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", "`-`"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999999,)}", "the number"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)} + f()", "after"),
            ("{'descr': '<f4', 'shape': (1,)}", "fortran_order"),
            ("{'descr': '<f4', 'descr': '<f4'}", "twice"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (((((((((1,),", "nests"),
            ("__import__('os')", "`_`"),
            ("", "too early"),
        ] {
            let found = of(text).unwrap_err();
            assert!(found.contains(named), "{text}: {found}");
        }
    }
}
