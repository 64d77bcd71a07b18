//! Reading logical rows out of stored weights: pieces, row order, transposition, value shifts, encodings.

use std::ops::Range;
use std::sync::Arc;

use formats::{Dtype, Result, Source, TensorBytes};
use half::f16;

use super::weights::{TensorRef, Weight};
use crate::encoding::plain::Real;
use crate::encoding::{Axis, Encoding, Form, Inputs, PartLayout, Rows, Scales, Stored, awq, int};
use crate::family::RowOrder;

/// Part of a logical matrix: some rows of a stored weight, in Hugging Face's order, seen in another.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// Index into the checkpoint's weights.
    pub weight: usize,
    /// The rows that are taken: of the stored matrix, or of its transpose if `transpose`.
    pub rows: Range<u64>,
    /// The order in which they are seen.
    pub order: RowOrder,
    /// Whether the stored matrix is the transpose of the logical one (gpt2, ONNX).
    pub transpose: bool,
    /// What they are seen with added to them, where a dialect adds something (see [`Weight::shift`]).
    pub shift: f32,
}

impl Piece {
    /// A whole weight as it is.
    pub fn whole(weight: usize, stored: &Weight) -> Self {
        Self { weight, rows: 0..stored.rows, order: RowOrder::Same, transpose: false, shift: 0.0 }
    }

    /// A whole weight as the file has it: in its order, with its shift.
    pub fn stored(weight: usize, stored: &Weight) -> Self {
        Self { order: stored.order, shift: stored.shift, ..Self::whole(weight, stored) }
    }

    /// Whether the piece is made of stored rows, in whatever order, so that their bytes can be copied.
    pub fn is_of_rows(&self, stored: &Weight) -> bool {
        !self.transpose && self.shift == stored.shift
    }
}

/// When the bytes of a view are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetch {
    /// Once, now: mapped bytes are borrowed, others read into memory.
    Now,
    /// Band by band, as rows are asked for.
    Bands,
}

#[derive(Debug)]
enum Bytes {
    /// Those from an offset on.
    Held(TensorBytes, u64),
    Later(Arc<Source>, usize),
}

impl Bytes {
    /// Those in memory.
    fn held(&self, range: &Range<u64>) -> Option<&[u8]> {
        match self {
            Self::Held(bytes, offset) => bytes.get((range.start - offset) as usize..(range.end - offset) as usize),
            Self::Later(..) => None,
        }
    }

    fn get<'a>(&'a self, range: Range<u64>, buffer: &'a mut Vec<u8>) -> Result<&'a [u8]> {
        match self {
            Self::Held(bytes, offset) => Ok(&bytes[(range.start - offset) as usize..(range.end - offset) as usize]),
            Self::Later(source, tensor) => {
                let slice = range.start as usize..range.end as usize;
                if let Some(bytes) = source.bytes(*tensor) {
                    return Ok(&bytes[slice]);
                }
                buffer.resize(slice.len(), 0);
                source.read_at(*tensor, range.start, buffer)?;
                Ok(buffer)
            }
        }
    }

    fn append(&self, range: Range<u64>, buffer: &mut Vec<u8>) -> Result<()> {
        match self {
            Self::Later(source, tensor) if source.bytes(*tensor).is_none() => {
                let start = buffer.len();
                buffer.resize(start + (range.end - range.start) as usize, 0);
                source.read_at(*tensor, range.start, &mut buffer[start..])
            }
            _ => {
                buffer.extend_from_slice(self.get(range, &mut Vec::new())?);
                Ok(())
            }
        }
    }
}

#[derive(Debug)]
struct OpenPiece {
    piece: Piece,
    stored_order: RowOrder,
    /// Added to every stored value.
    shift: f32,
    stored_rows: u64,
    stored_cols: u64,
    encoding: Encoding,
    parts: Vec<(PartLayout, Bytes)>,
    /// Where each row of the piece is stored, if not in order.
    positions: Option<Vec<u32>>,
}

/// Pieces stacked row on row: a logical matrix that reads itself.
#[derive(Debug)]
pub struct View {
    pieces: Vec<OpenPiece>,
    rows: usize,
    cols: usize,
    /// What the user wants, else what the config says.
    inputs: Option<Inputs>,
}

/// Buffers that reading needs; one for each thread, reused.
#[derive(Debug, Default)]
pub struct Scratch {
    bytes: Vec<u8>,
    numbers: Vec<f32>,
    scales: Vec<f32>,
}

impl View {
    pub(super) fn open(
        sources: &[Arc<Source>],
        weights: &[Weight],
        pieces: &[Piece],
        fetch: Fetch,
        inputs: Option<Inputs>,
    ) -> Result<Self> {
        let mut open = Vec::with_capacity(pieces.len());
        let (mut rows, mut cols) = (0, 0);
        for piece in pieces {
            let weight = &weights[piece.weight];
            rows += piece.rows.end - piece.rows.start;
            cols = if piece.transpose { weight.rows } else { weight.cols };
            open.push(OpenPiece::new(sources, weight, piece, fetch)?);
        }
        Ok(Self { pieces: open, rows: rows as usize, cols: cols as usize, inputs })
    }

    /// Unpacks rows `first .. first + out.len() / cols`, row after row.
    ///
    /// # Errors
    /// Only where bytes are read band by band from a file that is not mapped.
    pub fn try_read<T: Real>(&self, first: usize, out: &mut [T], scratch: &mut Scratch) -> Result<()> {
        if self.cols == 0 || out.is_empty() {
            return Ok(());
        }
        let mut start = first as u64;
        let mut out = out;
        for open in &self.pieces {
            let count = open.piece.rows.end - open.piece.rows.start;
            if start >= count {
                start -= count;
                continue;
            }
            let here = (count - start).min((out.len() / self.cols) as u64);
            let (now, later) = out.split_at_mut(here as usize * self.cols);
            open.read(start, now, self.cols, scratch)?;
            out = later;
            start = 0;
            if out.is_empty() {
                break;
            }
        }
        assert!(out.is_empty(), "rows past the end of a matrix");
        Ok(())
    }

    /// Tells the system that these rows of a view that is read in bands are needed soon, so that it begins to read them.
    pub fn prefetch(&self, rows: Range<u64>) {
        self.each_range(rows, Source::prefetch);
    }

    /// The stored bytes of rows `rows` of the view in one physical tensor of the encoding, row after row: borrowed where they
    /// lie so in a mapped file, gathered in `buffer` elsewhere. All pieces are [made of rows](Piece::is_of_rows).
    ///
    /// # Errors
    /// Only where bytes are read from a file that is not mapped.
    pub fn stored<'a>(&'a self, part: usize, rows: Range<u64>, buffer: &'a mut Vec<u8>) -> Result<&'a [u8]> {
        let mut start = rows.start;
        let mut left = rows.end - rows.start;
        buffer.clear();
        for open in &self.pieces {
            let count = open.piece.rows.end - open.piece.rows.start;
            if start >= count {
                start -= count;
                continue;
            }
            let here = left.min(count - start);
            let (layout, bytes) = &open.parts[part];
            if open.is_run() {
                let first = open.piece.rows.start + start;
                let range = layout.bytes_of(&(first..first + here));
                if here == rows.end - rows.start {
                    return bytes.get(range, buffer);
                }
                bytes.append(range, buffer)?;
            } else {
                for row in start..start + here {
                    let row = open.position(row as usize, count as usize);
                    bytes.append(layout.bytes_of(&(row..row + 1)), buffer)?;
                }
            }
            left -= here;
            start = 0;
            if left == 0 {
                break;
            }
        }
        Ok(buffer)
    }

    /// The stored bytes `range` of a physical tensor of the view's first weight.
    ///
    /// # Errors
    /// Only where bytes are read from a file that is not mapped.
    pub fn bytes<'a>(&'a self, part: usize, range: Range<u64>, buffer: &'a mut Vec<u8>) -> Result<&'a [u8]> {
        match self.pieces.first() {
            Some(open) => open.parts[part].1.get(range, buffer),
            None => Ok(&[]),
        }
    }

    /// Tells the system that these rows of a view that is read in bands are not needed soon. They come back from the file if
    /// they are.
    pub fn release(&self, rows: Range<u64>) {
        self.each_range(rows, Source::release);
    }

    /// The bytes in files of rows of a view that is one run and read in bands.
    fn each_range(&self, rows: Range<u64>, act: impl Fn(&Source, usize, Range<u64>)) {
        let [open] = self.pieces.as_slice() else { return };
        if !open.is_run() || open.encoding.band_axis() == Axis::In {
            return;
        }
        let rows = open.piece.rows.start + rows.start..open.piece.rows.start + rows.end;
        for (layout, bytes) in &open.parts {
            if let (Bytes::Later(source, tensor), false) = (bytes, layout.is_whole()) {
                act(source, *tensor, layout.bytes_of(&rows));
            }
        }
    }
}

impl OpenPiece {
    fn new(sources: &[Arc<Source>], weight: &Weight, piece: &Piece, fetch: Fetch) -> Result<Self> {
        let layouts = weight
            .encoding
            .parts(&weight.name, &weight.shape, weight.rows, weight.cols)
            .unwrap_or_else(|unfit| unreachable!("the loader made a weight that does not fit its encoding: {unfit}"));
        let in_order = !piece.transpose && piece.order == RowOrder::Same && weight.order == RowOrder::Same;
        let bytes = |layout: &PartLayout, at: &TensorRef| {
            let source = &sources[at.source];
            match fetch {
                // Of a stack of experts in a file that is not mapped, one expert's rows and not all of them for each.
                Fetch::Now if in_order && layout.name == weight.name && source.bytes(at.tensor).is_none() => {
                    let range = layout.bytes_of(&piece.rows);
                    let mut bytes = vec![0; (range.end - range.start) as usize];
                    source.read_at(at.tensor, range.start, &mut bytes)?;
                    Ok(Bytes::Held(bytes.into(), range.start))
                }
                Fetch::Now => Ok(Bytes::Held(TensorBytes::load(source, at.tensor)?, 0)),
                Fetch::Bands => Ok(Bytes::Later(source.clone(), at.tensor)),
            }
        };
        let parts: Vec<(PartLayout, Bytes)> = layouts
            .into_iter()
            .zip(&weight.tensors)
            .map(|(layout, at)| bytes(&layout, at).map(|bytes| (layout, bytes)))
            .collect::<Result<_>>()?;
        let mut open = Self {
            piece: piece.clone(),
            stored_order: weight.order,
            shift: piece.shift - weight.shift,
            stored_rows: weight.rows,
            stored_cols: weight.cols,
            encoding: weight.encoding,
            parts,
            positions: None,
        };
        if open.piece.order != open.stored_order && !open.piece.transpose && open.stored_rows <= u64::from(u32::MAX) {
            let rows = (open.piece.rows.end - open.piece.rows.start) as usize;
            open.positions = Some((0..rows).map(|row| open.position(row, rows) as u32).collect());
        }
        Ok(open)
    }

    /// The stored row that is row `row` of the piece's `rows`.
    fn position(&self, row: usize, rows: usize) -> u64 {
        self.piece.rows.start + self.stored_order.position(self.piece.order.canonical(row, rows), rows) as u64
    }

    /// The piece as it lies in memory.
    fn stored(&self, inputs: Option<Inputs>) -> Option<Stored<'_>> {
        if self.piece.transpose || self.shift != 0.0 || cfg!(target_endian = "big") {
            return None;
        }
        let rows = if self.is_run() { self.piece.rows.clone() } else { 0..self.stored_rows };
        let order = if self.is_run() { None } else { Some(self.positions.as_deref()?) };
        let part = |i: usize| self.parts.get(i).and_then(|(layout, bytes)| bytes.held(&layout.bytes_of(&rows)));
        let scales = |dtype, per_row| part(1).map(|bytes| Scales { dtype, bytes, per_row });
        let cols = self.stored_cols as usize;
        let (form, own) = match self.encoding {
            Encoding::Plain(dtype @ (Dtype::F32 | Dtype::F16 | Dtype::BF16)) => (Form::Plain(dtype), Inputs::Float),
            Encoding::Plain(dtype) if dtype.is_block() => (Form::Blocks(dtype), Inputs::Int8),
            Encoding::Int8Rows { scale } => (Form::Int8(scales(scale, 1)?), Inputs::Int8),
            Encoding::PackedInt { bits, group, scale } | Encoding::Blocked { bits, group, scale } => {
                let group = group as usize;
                (Form::Packed { bits, group, scales: scales(scale, cols / group)? }, Inputs::Float)
            }
            Encoding::Fp8Rows { scale } => (Form::Fp8(scales(scale, 1)?), Inputs::Float),
            _ => return None,
        };
        let bytes = part(0)?;
        let row_bytes = bytes.len() / (rows.end - rows.start).max(1) as usize;
        Some(Stored { form, bytes, row_bytes, order, inputs: inputs.unwrap_or(own) })
    }

    /// Whether its rows are stored rows that follow one another, unchanged. Another order is one of all rows.
    fn is_run(&self) -> bool {
        self.stored_order == self.piece.order
            && (self.piece.order == RowOrder::Same || self.piece.rows == (0..self.stored_rows))
            && !self.piece.transpose
            && self.shift == 0.0
    }

    /// Reads rows `first ..` of the piece.
    fn read<T: Real>(&self, first: u64, out: &mut [T], cols: usize, scratch: &mut Scratch) -> Result<()> {
        let count = (out.len() / cols) as u64;
        if self.piece.transpose {
            self.read_transposed(first, out, cols, scratch)?;
        } else if self.piece.order == self.stored_order {
            let start = self.piece.rows.start + first;
            self.unpack(start..start + count, out, scratch)?;
        } else {
            let all = (self.piece.rows.end - self.piece.rows.start) as usize;
            for (i, row) in out.chunks_exact_mut(cols).enumerate() {
                let stored = self.position(first as usize + i, all);
                self.unpack(stored..stored + 1, row, scratch)?;
            }
        }
        if self.shift != 0.0 {
            // What a dialect adds to, it adds to in the weight's own numbers, but for bf16, which its converters widen.
            let narrow = self.piece.shift != 0.0 && self.encoding == Encoding::Plain(Dtype::F16);
            let round = |x: f32| if narrow { f16::from_f32(x).to_f32() } else { x };
            out.iter_mut().for_each(|x| *x = T::from_f32(round(x.to_f32() + self.shift)));
        }
        Ok(())
    }

    /// Rows of the transpose are columns of what is stored: bands of stored rows are unpacked and turned; of plain numbers,
    /// only the columns that are asked for.
    fn read_transposed<T: Real>(&self, first: u64, out: &mut [T], cols: usize, scratch: &mut Scratch) -> Result<()> {
        let (first, count) = ((self.piece.rows.start + first) as usize, out.len() / cols);
        let width = self.stored_cols as usize;
        let band = ((1 << 18) / width.max(1)).clamp(1, 256);
        if let Encoding::Plain(dtype) = self.encoding
            && dtype.is_float()
        {
            let size = dtype.block_bits() as usize / 8;
            let mut line = vec![T::default(); count];
            let (layout, bytes) = &self.parts[0];
            for start in (0..cols).step_by(band) {
                let rows = start as u64..(start + band).min(cols) as u64;
                let packed = bytes.get(layout.bytes_of(&rows), &mut scratch.bytes)?;
                for (k, packed) in packed.chunks_exact(width * size).enumerate() {
                    T::decode(dtype, &packed[first * size..(first + count) * size], &mut line);
                    line.iter().enumerate().for_each(|(r, x)| out[r * cols + start + k] = *x);
                }
            }
            return Ok(());
        }
        let mut numbers = vec![T::default(); band * width];
        for start in (0..cols).step_by(band) {
            let n = band.min(cols - start);
            let numbers = &mut numbers[..n * width];
            self.unpack(start as u64..(start + n) as u64, numbers, scratch)?;
            for r in 0..count {
                for (k, row) in numbers.chunks_exact(width).enumerate() {
                    out[r * cols + start + k] = row[first + r];
                }
            }
        }
        Ok(())
    }

    /// Unpacks stored rows in stored order.
    fn unpack<T: Real>(&self, rows: Range<u64>, out: &mut [T], scratch: &mut Scratch) -> Result<()> {
        if matches!(self.encoding, Encoding::Awq { .. } | Encoding::Foreign(_)) {
            return self.unpack_foreign(rows, out, &mut scratch.numbers);
        }
        let Scratch { bytes: buffer, numbers, scales } = scratch;
        let (layout, bytes) = &self.parts[0];
        let packed = bytes.get(layout.bytes_of(&rows), buffer)?;
        match self.encoding {
            Encoding::Plain(dtype) if dtype.is_float() => T::decode(dtype, packed, out),
            Encoding::Plain(dtype) if dtype.is_block() => {
                numbers.resize(out.len(), 0.0);
                crate::encoding::ggml::unpack(dtype, packed, numbers);
                for (to, &from) in out.iter_mut().zip(&*numbers) {
                    *to = T::from_f32(from);
                }
            }
            Encoding::Int8Rows { scale } => {
                let scales = read_scales(&self.parts[1], scale, &rows, scales, 1)?;
                int::unpack_rows(packed, scales, self.stored_cols as usize, out);
            }
            Encoding::Int8Cols { scale } => {
                let cols = self.stored_cols as usize;
                let (layout, bytes) = &self.parts[1];
                scales.resize(cols, 0.0);
                f32::decode(scale, bytes.get(layout.bytes_of(&(0..self.stored_rows)), &mut Vec::new())?, scales);
                for (to, codes) in out.chunks_exact_mut(cols).zip(packed.chunks_exact(cols)) {
                    for ((x, &code), scale) in to.iter_mut().zip(codes).zip(&*scales) {
                        *x = T::from_f32(f32::from(code as i8) * scale);
                    }
                }
            }
            Encoding::PackedInt { bits, group, scale } | Encoding::Blocked { bits, group, scale } => {
                let (cols, group) = (self.stored_cols as usize, group as usize);
                let scales = read_scales(&self.parts[1], scale, &rows, scales, cols / group)?;
                int::unpack_groups(bits, packed, scales, (cols, group), out);
            }
            Encoding::Fp8Rows { scale } => {
                let cols = self.stored_cols as usize;
                let scales = read_scales(&self.parts[1], scale, &rows, scales, 1)?;
                for ((to, codes), scale) in out.chunks_exact_mut(cols).zip(packed.chunks_exact(cols)).zip(scales) {
                    for (x, &code) in to.iter_mut().zip(codes) {
                        *x = T::from_f32(crate::encoding::fp8::decode(code) * *scale);
                    }
                }
            }
            other => unreachable!("the loader makes no weights of {}", other.name()),
        }
        Ok(())
    }

    /// Unpacks stored rows of a form that other tools write.
    fn unpack_foreign<T: Real>(&self, rows: Range<u64>, out: &mut [T], numbers: &mut Vec<f32>) -> Result<()> {
        // Along the inputs there are no rows to cut: all of them are taken.
        let lines = match self.encoding.band_axis() {
            Axis::Out => rows.clone(),
            Axis::In => 0..self.stored_cols,
        };
        let mut buffers = vec![Vec::new(); self.parts.len()];
        let parts = self.parts.iter().zip(&mut buffers);
        let parts = parts.map(|((layout, bytes), buffer)| bytes.get(layout.bytes_of(&lines), buffer));
        let parts: Vec<&[u8]> = parts.collect::<Result<_>>()?;
        numbers.resize(out.len(), 0.0);
        match self.encoding {
            Encoding::Awq { group } => awq(&parts, group, rows, self.stored_rows, self.stored_cols, numbers),
            Encoding::Foreign(foreign) => foreign.unpack(&parts, rows, self.stored_cols, numbers),
            _ => {}
        }
        for (to, &from) in out.iter_mut().zip(&*numbers) {
            *to = T::from_f32(from);
        }
        Ok(())
    }
}

/// The scales of some rows, so many a row, as f32.
fn read_scales<'a>(
    (layout, bytes): &(PartLayout, Bytes),
    dtype: Dtype,
    rows: &Range<u64>,
    scales: &'a mut Vec<f32>,
    per_row: usize,
) -> Result<&'a [f32]> {
    scales.resize((rows.end - rows.start) as usize * per_row, 0.0);
    f32::decode(dtype, bytes.get(layout.bytes_of(rows), &mut Vec::new())?, scales);
    Ok(scales)
}

impl Rows for View {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn read(&self, first: usize, out: &mut [f32]) {
        // Views given to the runtime hold their bytes, so that reading cannot fail.
        if let Err(e) = self.try_read(first, out, &mut Scratch::default()) {
            unreachable!("a view that holds its bytes failed to read: {e}");
        }
    }

    fn stored(&self) -> Option<Stored<'_>> {
        match self.pieces.as_slice() {
            [open] => open.stored(self.inputs),
            _ => None,
        }
    }
}
