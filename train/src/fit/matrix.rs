//! Matrix products on slices.

use gemm::Parallelism;

/// A matrix somewhere in a slice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// `rows` x `columns`, row-major and dense.
    ///
    /// # Panics
    /// If `data` has another length.
    pub(crate) fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(data.len(), rows * columns, "a matrix of {rows} x {columns}");
        Self { data, rows, columns, row_stride: columns, column_stride: 1 }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// The columns `from..to` of a matrix that is not transposed.
    pub(crate) fn columns_of(self, from: usize, to: usize) -> Self {
        let end = if self.rows == 0 { from } else { (self.rows - 1) * self.row_stride + to };
        Self { data: &self.data[from..end], columns: to - from, ..self }
    }

    /// The transpose.
    pub(crate) fn transposed(self) -> Self {
        Self {
            data: self.data,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }
}

/// `out = a * b`, row-major and dense. It runs on the calling thread alone.
///
/// # Panics
/// If the sizes do not fit each other.
pub(crate) fn product(out: &mut [f32], a: Matrix<'_>, b: Matrix<'_>) {
    assert_eq!(a.columns, b.rows, "inner dimensions");
    assert_eq!(out.len(), a.rows * b.columns, "result of {} x {}", a.rows, b.columns);
    let stride = |stride: usize| stride.cast_signed();
    // SAFETY: a `Matrix` has as many elements as its slice, reached by its strides, and `out` was checked to be dense.
    #[allow(unsafe_code)]
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            out.as_mut_ptr(),
            1,
            stride(b.columns),
            false,
            a.data.as_ptr(),
            stride(a.column_stride),
            stride(a.row_stride),
            b.data.as_ptr(),
            stride(b.column_stride),
            stride(b.row_stride),
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
