//! ONNX: a protobuf of a graph and its constants.

pub mod proto;
