"""KIM: potentials as portable models, for simulation programs that know the KIM API and load no plugins.

`segnn_kim.cpp` and `CMakeLists.txt` make a model from an exported library, once they are installed by
``kim-api-collections-management``.
"""
