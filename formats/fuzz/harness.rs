//! What a reader must survive, whatever the bytes are: used by the fuzz targets and by the test `hostile`.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use modelpress_formats::{Access, Error, Kind, Limits, Payload, Source, gguf, npz, onnx, pytorch};

/// Opens bytes as a weight file, mapped and by offset, and looks at all that they say they hold.
///
/// # Panics
/// If a reader panics, if the two ways differ, or if a fault of the file is not called one.
pub fn open(bytes: &[u8]) {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(bytes).expect("a temporary file");
    let [mapped, read] =
        [Access::Mapped, Access::Read].map(|access| modelpress_formats::open(file.path(), access, &Limits::default()));
    assert_eq!(outcome(&mapped), outcome(&read), "mapped and read by offset are the same");
    match mapped {
        Ok(source) => {
            look(&source, bytes);
            same(&source, &read.expect("the same outcome"));
        }
        Err(err) => assert_eq!(err.kind(), Kind::Input, "{err}"),
    }
}

/// NaN is not equal to itself; its print is.
fn outcome(result: &Result<Arc<Source>, Error>) -> String {
    match result {
        Ok(source) => format!("{:?} {:?} {:?}", source.tensors(), source.metadata(), source.payload()),
        Err(err) => err.to_string(),
    }
}

fn same(mapped: &Source, read: &Source) {
    for (i, tensor) in mapped.tensors().iter().enumerate() {
        let found = mapped.bytes(i).expect("mapped");
        let mut buffer = vec![0; found.len().min(1 << 20)];
        read.read_at(i, 0, &mut buffer).expect("what can be mapped can be read");
        assert!(found.starts_with(&buffer), "{}", tensor.name);
    }
}

fn look(source: &Source, bytes: &[u8]) {
    for (i, tensor) in source.tensors().iter().enumerate() {
        let place = source.place(i);
        let found = source.bytes(i).expect("mapped");
        // What had to be unpacked lies past the end.
        if let Some(stored) = bytes.get(place.start as usize..place.end as usize) {
            assert_eq!(found, stored, "{}", tensor.name);
        }
        assert_eq!(tensor.bytes(), Some(found.len() as u64), "{}", tensor.name);
    }
    // What was read can be laid out again, or is refused.
    let _ = npz::layout(Path::new("again"), source.tensors());
    let _ = pytorch::layout(Path::new("again"), source.tensors());
    if let Payload::Gguf(metadata) = source.payload() {
        let _ = gguf::layout(Path::new("again"), source.tensors(), metadata);
    }
    if let Payload::Onnx(model) = source.payload() {
        let nodes = model.graph().nodes().map(|node| node.proto.output.len()).sum::<usize>();
        assert!(nodes <= bytes.len() && model.constants().len() <= source.tensors().len());
        let stored = |tensor| (tensor, onnx::Stored { parts: vec![(0, tensor)], nodes: Vec::new() });
        let edit = onnx::Edit { constants: (0..source.tensors().len()).map(stored).collect(), ..Default::default() };
        let (tensors, files) = (source.tensors(), [source.tensors()]);
        let layouts = onnx::layouts(Path::new("again"), model, tensors, &files, None, &edit).expect("what was read");
        let spans = layouts[0].spans.iter().zip(tensors);
        assert!(spans.into_iter().all(|(span, tensor)| tensor.bytes() == Some(span.end - span.start)));
    }
}
