package keys

// hidden holds a secret where no format can reach it. fmt follows pointers into structs (it prints what a pointer leads
// to for a verb that does not fit) and cannot call the methods of unexported fields, but it never calls a function.
type hidden[T any] func() T

func hide[T any](secret T) hidden[T] { return func() T { return secret } }
