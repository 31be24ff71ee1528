module github.com/meshray/meshray/engine/builder

go 1.26.0

require github.com/bluekeyes/go-gitdiff v0.9.0
